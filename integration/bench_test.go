//go:build linux

package integration

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/emulator"
)

// The benchmarks run a whole Caddy in a process of its own, with the API's
// stand-in, the app and the clients in this one.

const (
	apiDelay   = 50 * time.Millisecond
	tokenBytes = 900
)

// benchGateway is a Caddy with one site for each thing to compare.
type benchGateway struct {
	*testing.B
	process *os.Process
	api     *emulator.Emulator
	sites   map[string]string   // address by name
	apps    map[string]*bareApp // by the same names
	serial  atomic.Int64
}

func newBenchGateway(b *testing.B) *benchGateway {
	b.Helper()
	g := &benchGateway{B: b, sites: make(map[string]string), apps: make(map[string]*bareApp)}
	g.api = emulator.New(emulator.Options{APIKey: testKey, Fault: emulator.Fault{Delay: caddy.Duration(apiDelay)}})
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The stand-in's tokens have 331 bytes. Another claim makes them longer.
		claim := `{"padding":"` + strings.Repeat("x", (tokenBytes-331)*3/4-13) + `",`
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(err)
		}
		r.Body = io.NopCloser(strings.NewReader(strings.Replace(string(body), "{", claim, 1)))
		g.api.ServeHTTP(w, r)
	}))
	b.Cleanup(func() { g.api.Close(); api.Close() })

	var config strings.Builder
	config.WriteString("{\n\tadmin off\n\tpersist_config off\n\tauto_https off\n\tdefault_bind 127.0.0.1\n}\n")
	for name, directive := range map[string]string{
		"plain": "",
		// As long as the token, with as many header operations.
		"constant": "request_header X-Viewer-Session " + strings.Repeat("x", tokenBytes),
		"viewer":   "viewer_session {\n\tdocument_path /documents/:id\n\tmint_rate off\n\tendpoint " + api.URL + "/viewer/sessions\n}",
	} {
		g.sites[name], g.apps[name] = freeAddress(b), startBareApp(b)
		// As many connections as there are clients: with the default of 32, a
		// burst opens new ones at each site.
		fmt.Fprintf(&config, "http://%s {\n%s\nreverse_proxy %s {\ntransport http {\nkeepalive_idle_conns_per_host 256\n}\n}\n}\n", g.sites[name], directive, g.apps[name].Addr())
	}
	file := filepath.Join(b.TempDir(), "Caddyfile")
	if err := os.WriteFile(file, []byte(config.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self, "run", "--adapter", "caddyfile", "--config", file) //nolint:gosec // a test's
	cmd.Env = append(os.Environ(), asCommand+"=1")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	g.process = cmd.Process
	b.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	for _, address := range g.sites {
		waitFor(b, "the gateway does not start", func() bool {
			conn, err := net.Dial("tcp", address)
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
	}
	return g
}

// cpu is the time that the gateway's threads have run.
func (g *benchGateway) cpu() time.Duration {
	g.Helper()
	var sum time.Duration
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", g.process.Pid))
	if err != nil || len(files) == 0 {
		g.Fatal("no schedstat of the gateway", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		first, _, _ := strings.Cut(string(text), " ")
		nanoseconds, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			g.Fatal(err)
		}
		sum += time.Duration(nanoseconds)
	}
	return sum
}

// bareApp answers every GET with the same page, and takes as little of the
// processor, which it shares with the gateway, as an app can.
type bareApp struct {
	net.Listener
	longestHeader atomic.Int64
}

func startBareApp(b *testing.B) *bareApp {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	app := &bareApp{Listener: listener}
	b.Cleanup(func() { app.Close() })
	go func() {
		for {
			conn, err := app.Accept()
			if err != nil {
				return // closed
			}
			go app.serve(conn)
		}
	}()
	return app
}

func (app *bareApp) serve(conn net.Conn) {
	defer conn.Close() // the gateway ends it
	const page = "<!doctype html><title>a page</title>"
	answer := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s", len(page), page)
	for r := bufio.NewReader(conn); ; {
		line, err := r.ReadSlice('\n')
		slow := bytes.HasPrefix(line, []byte("GET /slow/"))
		longest := 0
		for err == nil && len(line) > len("\r\n") {
			line, err = r.ReadSlice('\n')
			longest = max(longest, len(line))
		}
		if err != nil {
			return
		}
		app.longestHeader.Store(int64(longest))
		if slow {
			time.Sleep(apiDelay) // as the API does
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

// client is one connection that is kept. It takes little of the processor, too.
type client struct {
	conn    net.Conn
	r       *bufio.Reader
	request []byte
}

func (g *benchGateway) dial(site string) *client {
	g.Helper()
	conn, err := net.Dial("tcp", g.sites[site])
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { conn.Close() })
	return &client{conn: conn, r: bufio.NewReader(conn)}
}

func (c *client) get(site, path string) error {
	c.request = fmt.Appendf(c.request[:0], "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: Mozilla/5.0\r\nAccept: text/html\r\nAccept-Language: en\r\nCookie: session=0123456789abcdef\r\n\r\n", path, site)
	if _, err := c.conn.Write(c.request); err != nil {
		return err
	}
	line, err := c.r.ReadSlice('\n')
	if err == nil && !bytes.HasPrefix(line, []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("not the page: %s", line)
	}
	var length int
	for err == nil && len(line) > len("\r\n") {
		if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			length, err = strconv.Atoi(string(bytes.TrimSpace(value)))
			if err != nil {
				return err
			}
		}
		line, err = c.r.ReadSlice('\n')
	}
	if err != nil {
		return err
	}
	if length == 0 {
		return errors.New("no page")
	}
	_, err = c.r.Discard(length)
	return err
}

// BenchmarkGateway compares a cached request with one of plain Caddy, and with
// one that gets a constant header: in CPU time of the gateway, in rounds that
// take turns, since single rounds differ by more than what is measured.
func BenchmarkGateway(b *testing.B) {
	g := newBenchGateway(b)
	const clients, requests = 8, 250
	names := []string{"plain", "constant", "viewer"}
	conns := make(map[string][]*client)
	for _, name := range names {
		for range clients {
			conns[name] = append(conns[name], g.dial(name))
		}
	}
	round := func(name string) time.Duration {
		before := g.cpu()
		var wg sync.WaitGroup
		for _, c := range conns[name] {
			wg.Go(func() {
				for i := range requests {
					if err := c.get(g.sites[name], fmt.Sprint("/documents/doc-", i%100)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		return (g.cpu() - before) / (clients * requests)
	}
	for _, name := range names { // warm up, and mint
		round(name)
	}
	constant, token := g.apps["constant"].longestHeader.Load(), g.apps["viewer"].longestHeader.Load()
	if difference := constant - token; difference < -2 || difference > 2 { // documents' ids have one digit or two
		b.Fatalf("the constant header has %d bytes, the token's %d", constant, token)
	}
	costs := make(map[string][]time.Duration)
	var ratios []float64
	for b.Loop() {
		at := len(ratios)
		for i := range names {
			name := names[(at+i)%len(names)]
			costs[name] = append(costs[name], round(name))
		}
		ratios = append(ratios, float64(costs["viewer"][at])/float64(costs["constant"][at]))
	}
	b.ReportMetric(0, "ns/op")
	for _, name := range names {
		slices.Sort(costs[name])
		b.ReportMetric(float64(costs[name][len(costs[name])/2].Nanoseconds())/1000, name+"-µs/request")
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "viewer/constant")
}

// BenchmarkColdBurst lets 200 clients ask for one document that is not cached,
// at an API that takes 50 ms; and, to compare with, at a plain Caddy for a page
// that takes the app as long.
func BenchmarkColdBurst(b *testing.B) {
	g := newBenchGateway(b)
	burst := func(site, folder string) func() time.Duration {
		conns := make([]*client, 200)
		for i := range conns {
			conns[i] = g.dial(site)
			if err := conns[i].get(g.sites[site], "/"); err != nil { // connections to the app as well
				b.Fatal(err)
			}
		}
		return func() time.Duration {
			path := fmt.Sprint(folder, g.serial.Add(1))
			took := make([]time.Duration, len(conns))
			var wg sync.WaitGroup
			start := make(chan struct{})
			for i, c := range conns {
				wg.Go(func() {
					<-start
					began := time.Now()
					if err := c.get(g.sites[site], path); err != nil {
						b.Error(err)
					}
					took[i] = time.Since(began)
				})
			}
			close(start)
			wg.Wait()
			return slices.Max(took)
		}
	}
	viewer, plain := burst("viewer", "/documents/burst-"), burst("plain", "/slow/")
	var slowest, slowestPlain []time.Duration
	before := g.api.Stats().Mints
	for b.Loop() {
		slowest = append(slowest, viewer())
		slowestPlain = append(slowestPlain, plain())
	}
	b.ReportMetric(0, "ns/op")
	for name, list := range map[string][]time.Duration{"ms/slowest-of-200": slowest, "ms/slowest-of-200-plain": slowestPlain} {
		slices.Sort(list)
		b.ReportMetric(float64(list[len(list)/2].Microseconds())/1000, name)
	}
	b.ReportMetric(float64(g.api.Stats().Mints-before)/float64(len(slowest)), "mints/burst")
}

// BenchmarkNewDocuments lets 64 clients ask for documents that are never cached.
func BenchmarkNewDocuments(b *testing.B) {
	g := newBenchGateway(b)
	conns := make([]*client, 64)
	for i := range conns {
		conns[i] = g.dial("viewer")
	}
	b.ResetTimer()
	var wg sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(b.N))
	for _, c := range conns {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := c.get(g.sites["viewer"], fmt.Sprint("/documents/new-", g.serial.Add(1))); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
}
