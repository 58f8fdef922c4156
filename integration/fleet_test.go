//go:build unix

package integration

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	"github.com/viewersession/caddy-viewer-session/internal/redistest"
	_ "github.com/viewersession/caddy-viewer-session/redis"
)

const (
	redisPassword      = "the-fleets-password-for-redis"
	fleetEncryptionKey = "the-fleets-encryption-key-0123456789abcdef"
)

// fleetUser is the ACL that docs/fleet.md and the example give the gateways.
var fleetUser = []string{
	"--user", "default", "on", "nopass", "~*", "&*", "+@all", // for the test
	"--user", "gateway", "on", ">" + redisPassword, "~viewer_session:*", "+get", "+set", "+del", "+pttl", "+eval", "+evalsha", "+ping",
}

// fleet is gateways in processes of their own, with the example's Caddyfile.
type fleet struct {
	t        *testing.T
	api      *standIn
	app      *httptest.Server
	dir      string
	env      []string
	gateways []*gateway
	client   *http.Client
	round    int // each has documents of its own
}

// gateway is one process.
type gateway struct {
	address, admin string

	cmd    *exec.Cmd
	output bytes.Buffer // read it only when cmd has ended
}

// newFleet starts gateways that share a store at the address. edit changes the
// Caddyfile.
func newFleet(t *testing.T, size int, store string, edit func(caddyfile string) string) *fleet {
	t.Helper()
	dir, err := os.MkdirTemp("", "fleet")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fleet{t: t, dir: dir, api: newStandIn(t, emulator.Options{APIKey: testKey, Fault: emulator.Fault{Delay: caddy.Duration(50 * time.Millisecond)}})}
	f.app = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Header.Get("X-Viewer-Session"))
	}))
	t.Cleanup(f.app.Close)
	f.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 200}, Timeout: 20 * time.Second}
	t.Cleanup(f.client.CloseIdleConnections)
	caddyfile, err := os.ReadFile("../examples/fleet/Caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	// Everything is searched for secrets, so everything is logged.
	text := strings.Replace(string(caddyfile), "{\n", "{\n\tdebug\n\tlog {\n\t\tformat filter {\n\t\t\trequest>headers>X-Viewer-Session delete\n\t\t}\n\t}\n", 1)
	text = strings.Replace(text, "reverse_proxy", "log\n\treverse_proxy", 1)
	if edit != nil {
		text = edit(text)
	}
	for name, content := range map[string]string{
		"Caddyfile": text, "api-key": testKey + "\n", "redis-password": redisPassword + "\n", "encryption-key": fleetEncryptionKey + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.env = append(os.Environ(), asCommand+"=1", "ENDPOINT="+f.api.url+"/viewer/sessions", "SECRETS="+dir,
		"REDIS="+store, "APP="+strings.TrimPrefix(f.app.URL, "http://"))
	for range size {
		f.gateways = append(f.gateways, f.start())
	}
	return f
}

// start runs one more gateway until the test ends.
func (f *fleet) start() *gateway {
	f.t.Helper()
	self, err := os.Executable()
	if err != nil {
		f.t.Fatal(err)
	}
	g := &gateway{address: freeAddress(f.t), admin: freeAddress(f.t)}
	g.cmd = exec.Command(self, "run", "--adapter", "caddyfile", "--config", filepath.Join(f.dir, "Caddyfile")) //nolint:gosec // a test's
	g.cmd.Env = append(slices.Clone(f.env), "GATEWAY="+g.address, "ADMIN="+g.admin)
	g.cmd.Stdout, g.cmd.Stderr = &g.output, &g.output
	if err := g.cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- g.cmd.Wait() }() // it ends with the process
	f.t.Cleanup(func() {
		config := f.admin(g, "/config/")
		_ = g.cmd.Process.Signal(syscall.SIGTERM)
		if err := <-ended; err != nil {
			f.t.Errorf("the gateway ended with %v", err)
		}
		f.wantNoSecretIn("the gateway's output", g.output.Bytes())
		f.wantNoSecretIn("the gateway's config", []byte(config))
		if bytes.Contains(g.output.Bytes(), []byte("DATA RACE")) {
			f.t.Errorf("%s", g.output.Bytes())
		}
		if g.output.Len() == 0 || config == "" {
			f.t.Error("the gateway said nothing, so nothing was searched for secrets")
		}
	})
	deadline := time.Now().Add(30 * time.Second)
	for {
		resp, err := f.client.Get("http://" + g.address + "/")
		if err == nil {
			resp.Body.Close()
			return g
		}
		select {
		case err := <-ended:
			f.t.Fatalf("the gateway ended with %v: %s", err, g.output.Bytes())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			f.t.Fatal("the gateway does not start")
		}
	}
}

func (f *fleet) wantNoSecretIn(where string, text []byte) {
	f.t.Helper()
	found := secretIn(text)
	for _, secret := range []string{redisPassword, fleetEncryptionKey} {
		if at := bytes.Index(text, []byte(secret)); at >= 0 {
			found = []int{at, at + len(secret)}
		}
	}
	if found != nil {
		f.t.Errorf("%s holds a secret: …%s…", where, text[max(0, found[0]-200):min(len(text), found[0]+60)])
	}
}

func (f *fleet) admin(g *gateway, path string) string {
	f.t.Helper()
	resp, err := f.client.Get("http://" + g.admin + path)
	if err != nil {
		f.t.Error(err)
		return ""
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Error(err)
	}
	return string(text)
}

// token asks a gateway for a document. The token that the app got has to be
// for that document.
func (f *fleet) token(g *gateway, document string) (string, error) {
	resp, err := f.client.Get("http://" + g.address + "/documents/" + document)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d", resp.StatusCode)
	}
	payload, err := decodePayload(string(text))
	if err != nil || !strings.Contains(payload, strconv.Quote(document)) {
		return "", fmt.Errorf("the app got %.100q for %s", text, document)
	}
	return string(text), nil
}

// wantAlike asks every gateway for a document, and wants the same token from all.
func (f *fleet) wantAlike(document string) string {
	f.t.Helper()
	var first string
	for _, g := range f.gateways {
		token, err := f.token(g, document)
		if err != nil {
			f.t.Fatal(err)
		}
		if first == "" {
			first = token
		}
		if token != first {
			f.t.Fatalf("two gateways have two tokens for %s", document)
		}
	}
	return first
}

// operations sums up what the gateways did with the store.
func (f *fleet) operations() map[string]uint64 {
	f.t.Helper()
	sum := make(map[string]uint64)
	for _, g := range f.gateways {
		var status struct {
			Pools []struct {
				Store struct {
					Operations map[string]map[string]uint64 `json:"operations"`
				} `json:"store"`
				CachedBytes uint64 `json:"cached_bytes"`
			} `json:"pools"`
		}
		if err := json.Unmarshal([]byte(f.admin(g, "/viewer_session/")), &status); err != nil {
			f.t.Fatal(err)
		}
		for _, p := range status.Pools {
			sum["cached_bytes"] += p.CachedBytes
			for operation, outcomes := range p.Store.Operations {
				for outcome, count := range outcomes {
					sum[operation+" "+outcome] += count
				}
			}
		}
	}
	return sum
}

// patient gives the store so much time that a busy machine makes no mint twice.
func patient(caddyfile string) string {
	return strings.Replace(caddyfile, "username gateway", "timeout 1s\n\t\t\tusername gateway", 1)
}

// Three gateways, a thousand documents, twenty readers at each gateway at
// once: a thousand mints.
func TestFleetMintsEachTokenOnce(t *testing.T) {
	for _, binary := range redistest.Binaries(t) {
		t.Run(binary, func(t *testing.T) {
			server := redistest.StartBinary(t, binary, fleetUser...)
			f := newFleet(t, 3, server.Address, patient)
			const documents, readers = 1000, 20
			var wg sync.WaitGroup
			var tokens [documents]sync.Map
			start := time.Now()
			for _, g := range f.gateways {
				for reader := range readers {
					wg.Go(func() {
						// All gateways begin with the same documents; at each,
						// two readers ask for the same one at the same moment.
						for i := range documents {
							if i%(readers/2) != reader%(readers/2) {
								continue
							}
							token, err := f.token(g, fmt.Sprint("doc-", i))
							if err != nil {
								t.Error(err)
								return
							}
							tokens[i].Store(token, true)
						}
					})
				}
			}
			wg.Wait()
			took := time.Since(start)
			if t.Failed() {
				return
			}
			for i := range tokens {
				count := 0
				tokens[i].Range(func(any, any) bool { count++; return true })
				if count != 1 {
					t.Errorf("document %d has %d tokens", i, count)
				}
			}
			if minted := len(f.api.minted()); minted != documents {
				t.Errorf("%d mints, want %d", minted, documents)
			}
			t.Logf("%s for %d requests, operations %v", took, 3*2*documents, f.operations())

			// A gateway that comes later mints nothing.
			f.gateways = append(f.gateways, f.start())
			for i := range 20 {
				f.wantAlike(fmt.Sprint("doc-", i))
			}
			if minted := len(f.api.minted()); minted != 0 {
				t.Errorf("the fourth gateway led to %d mints", minted)
			}
			dump := server.Must("KEYS", "*")
			if strings.Contains(dump, "doc-") || strings.Count(dump, "viewer_session:") != documents {
				t.Errorf("%d keys in the store", strings.Count(dump, "viewer_session:"))
			}
		})
	}
}

// latencies are those of requests for documents that were cold at each gateway.
type latencies []time.Duration

func (l latencies) String() string {
	if len(l) == 0 {
		return "none"
	}
	slices.Sort(l)
	at := func(share float64) time.Duration {
		return l[min(int(share*float64(len(l))), len(l)-1)].Round(100 * time.Microsecond)
	}
	return fmt.Sprintf("%d requests, p50 %s, p99 %s, max %s", len(l), at(0.5), at(0.99), at(1))
}

// traffic asks all gateways for ever new documents, each gateway for each, and
// for one that everybody has open.
type traffic struct {
	fleet *fleet
	stop  context.CancelFunc
	wg    sync.WaitGroup
	next  atomic.Int64

	mu      sync.Mutex
	cold    latencies
	errs    []error
	wanted  int           // how many latencies somebody waits for
	reached chan struct{} // closed when they are there
}

func (f *fleet) traffic(readers int) *traffic {
	ctx, cancel := context.WithCancel(f.t.Context())
	f.round++
	round := f.round
	tr := &traffic{fleet: f, stop: cancel}
	for range readers {
		tr.wg.Go(func() {
			for ctx.Err() == nil {
				document := fmt.Sprint("cold-", round, "-", tr.next.Add(1))
				for _, g := range f.gateways {
					start := time.Now()
					_, err1 := f.token(g, document)
					took := time.Since(start)
					_, err2 := f.token(g, "open")
					tr.mu.Lock()
					if tr.cold = append(tr.cold, took); len(tr.cold) == tr.wanted {
						close(tr.reached)
					}
					if err := errors.Join(err1, err2); err != nil {
						tr.errs = append(tr.errs, err)
					}
					tr.mu.Unlock()
				}
			}
		})
	}
	return tr
}

// wait returns the latencies of the next requests.
func (tr *traffic) wait(requests int) latencies {
	tr.fleet.t.Helper()
	tr.mu.Lock()
	tr.cold, tr.wanted, tr.reached = nil, requests, make(chan struct{})
	reached := tr.reached
	tr.mu.Unlock()
	select {
	case <-reached:
	case <-time.After(60 * time.Second):
		tr.fleet.t.Fatal("requests hang")
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return slices.Clone(tr.cold)
}

// Whatever becomes of the store, no request fails, and afterwards the fleet
// shares its tokens again.
func TestFleetWithoutItsStore(t *testing.T) {
	server := redistest.Start(t, fleetUser...)
	f := newFleet(t, 3, server.Address, nil)
	for _, test := range []struct {
		name       string
		fail, heal func(server *redistest.Server)
	}{
		{"killed", (*redistest.Server).Kill, (*redistest.Server).Restart},
		{"hung", (*redistest.Server).Hang, (*redistest.Server).Continue},
		{"restarted empty", (*redistest.Server).Restart, func(*redistest.Server) {}},
		{
			"out of memory",
			func(s *redistest.Server) { s.Must("CONFIG", "SET", "maxmemory", "1") },
			func(s *redistest.Server) { s.Must("CONFIG", "SET", "maxmemory", "0") },
		},
		{
			"refuses the user",
			func(s *redistest.Server) {
				s.Must("ACL", "SETUSER", "gateway", "off")
				s.Must("CLIENT", "KILL", "USER", "gateway")
			},
			func(s *redistest.Server) { s.Must("ACL", "SETUSER", "gateway", "on") },
		},
		{
			"takes rights away",
			func(s *redistest.Server) { s.Must("ACL", "SETUSER", "gateway", "-@all") },
			func(s *redistest.Server) {
				s.Must("ACL", "SETUSER", "gateway", "+get", "+set", "+del", "+pttl", "+eval", "+evalsha", "+ping")
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			f.wantShared()
			tr := f.traffic(8)
			t.Logf("before:   %s", tr.wait(300))
			test.fail(server)
			t.Logf("at first: %s", tr.wait(100))
			t.Logf("then:     %s", tr.wait(300))
			test.heal(server)
			f.wantShared()
			t.Logf("after:    %s", tr.wait(300))
			tr.stop()
			tr.wg.Wait()
			if len(tr.errs) > 0 {
				t.Errorf("%d requests failed, the first with %v", len(tr.errs), tr.errs[0])
			}
		})
	}
}

// wantShared waits until the gateways share tokens: each leaves a store that
// has failed alone for some seconds.
func (f *fleet) wantShared() {
	f.t.Helper()
	waitFor(f.t, "the gateways do not share tokens again", func() bool {
		f.round++
		seen := make(map[string]bool)
		for _, g := range f.gateways {
			token, err := f.token(g, fmt.Sprint("shared-", f.round))
			if err != nil {
				f.t.Fatal(err)
			}
			seen[token] = true
		}
		return len(seen) == 1
	})
}

// A failover costs some seconds of sharing, and no request.
func TestFleetWithSentinel(t *testing.T) {
	primary := redistest.Start(t, append([]string{"--repl-diskless-sync-delay", "0"}, fleetUser...)...)
	host, port, _ := strings.Cut(primary.Address, ":")
	replica := redistest.Start(t, append([]string{"--replicaof", host + " " + port}, fleetUser...)...)
	sentinel := redistest.StartSentinel(t, primary)
	waitFor(t, "the replica does not come up", func() bool {
		return strings.Contains(replica.Must("INFO", "replication"), "master_link_status:up") &&
			strings.Contains(sentinel.Must("SENTINEL", "REPLICAS", "mymaster"), replica.Address)
	})
	f := newFleet(t, 3, sentinel.Address, func(caddyfile string) string {
		return strings.Replace(caddyfile, "username gateway", "master_name mymaster\n\t\t\tusername gateway", 1)
	})
	f.wantAlike("open")
	tr := f.traffic(8)
	t.Logf("before:   %s", tr.wait(300))
	primary.Kill()
	t.Logf("at first: %s", tr.wait(100))
	f.wantShared()
	t.Logf("after:    %s", tr.wait(300))
	tr.stop()
	tr.wg.Wait()
	if len(tr.errs) > 0 {
		t.Errorf("%d requests failed, the first with %v", len(tr.errs), tr.errs[0])
	}
	if replica.Must("DBSIZE") == "0" {
		t.Error("nothing is at the new primary")
	}
}

func TestFleetWithCluster(t *testing.T) {
	// Which node has what, is what a Cluster's clients ask as well.
	nodes := redistest.StartCluster(t, append(slices.Clone(fleetUser), "+cluster|slots")...)
	f := newFleet(t, 3, nodes[0].Address, func(caddyfile string) string {
		return strings.Replace(patient(caddyfile), "username gateway", "cluster\n\t\t\tusername gateway", 1)
	})
	for i := range 100 {
		f.wantAlike(fmt.Sprint("doc-", i))
	}
	if minted := len(f.api.minted()); minted != 100 {
		t.Errorf("%d mints, want 100", minted)
	}
	tr := f.traffic(8)
	t.Logf("before:   %s", tr.wait(300))
	nodes[2].Kill()
	t.Logf("at first: %s", tr.wait(100))
	t.Logf("then:     %s", tr.wait(300))
	tr.stop()
	tr.wg.Wait()
	if len(tr.errs) > 0 {
		t.Errorf("%d requests failed, the first with %v", len(tr.errs), tr.errs[0])
	}
}

func init() { examples["fleet"] = fleetExample }

// fleetExample runs the example's one Caddyfile as a gateway does.
func fleetExample(t *testing.T, s *stage, text string) {
	server := redistest.Start(t, fleetUser...)
	secrets := t.TempDir()
	for name, secret := range map[string]string{"api-key": testKey, "redis-password": redisPassword, "encryption-key": fleetEncryptionKey} {
		if err := os.WriteFile(filepath.Join(secrets, name), []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, value := range map[string]string{
		"ADMIN": s.admin, "GATEWAY": s.gateway, "ENDPOINT": s.api.url + "/viewer/sessions", "SECRETS": secrets, "REDIS": server.Address, "APP": s.app.address,
	} {
		t.Setenv(name, value)
	}
	// Not by s.load, since the example has its names from the environment.
	if err := loadText(strings.Replace(text, "{\n", "{\n\tlog {\n\t\tlevel DEBUG\n\t\toutput file \""+s.logFile+"\"\n\t\tformat filter {\n\t\t\trequest>headers>X-Viewer-Session delete\n\t\t}\n\t}\n", 1)); err != nil {
		t.Fatal(err)
	}
	s.token("/documents/doc1")
	if !strings.Contains(server.Must("KEYS", "*"), "viewer_session:") {
		t.Error("the token is not in the store")
	}
	log, err := os.ReadFile(s.logFile)
	if err != nil || bytes.Contains(log, []byte(redisPassword)) || bytes.Contains(log, []byte(fleetEncryptionKey)) {
		t.Errorf("%v, or a secret in the log", err)
	}
}

// The Caddyfile in docs/fleet.md works, and its list of rights is the one that
// the tests run with.
func TestFleetDocs(t *testing.T) {
	text, err := os.ReadFile("../docs/fleet.md")
	if err != nil {
		t.Fatal(err)
	}
	rights := strings.Join(fleetUser[slices.Index(fleetUser, "gateway"):], " ")
	if want := "user " + strings.Replace(rights, redisPassword, "PASSWORD", 1); !strings.Contains(string(text), "\n"+want+"\n") {
		t.Errorf("the docs do not say %q", want)
	}
	_, block, _ := strings.Cut(string(text), "```caddyfile\n")
	block, _, found := strings.Cut(block, "```")
	if !found {
		t.Fatal("no Caddyfile")
	}
	s := newStage(t)
	server := redistest.Start(t, fleetUser...)
	secrets := t.TempDir()
	for name, secret := range map[string]string{"redis": redisPassword, "viewer_session_key": fleetEncryptionKey} {
		if err := os.WriteFile(filepath.Join(secrets, name), []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.load(site(t, block, "app:3000", "APP", "10.0.0.5:6379", server.Address, "/run/secrets/", secrets+"/"))
	s.token("/documents/doc1")
	if !strings.Contains(server.Must("KEYS", "*"), "viewer_session:") {
		t.Error("the token is not in the store")
	}
}

// The example's script starts everything, and stops all that it has started.
func TestFleetScript(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	first := 0
	for { // nine ports in a row
		_, port, _ := strings.Cut(freeAddress(t), ":")
		n, err := strconv.Atoi(port)
		if err != nil {
			t.Fatal(err)
		}
		if first == 0 || n < first {
			first = n
		}
		if n-first >= 8 {
			break
		}
	}
	var output bytes.Buffer
	ready, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	cmd := exec.Command("bash", "../examples/fleet/run.sh")
	cmd.Env = append(os.Environ(), asCommand+"=1", "CADDY="+self, "PORT="+strconv.Itoa(first))
	cmd.Stdout, cmd.Stderr = w, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that what it leaves behind can be found
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	said := make([]byte, 4<<10)
	n, err := io.ReadAtLeast(ready, said, 100)
	if err != nil {
		t.Fatalf("%v: %s", err, output.Bytes())
	}
	var gateways []string
	for line := range strings.SplitSeq(string(said[:n]), "\n") {
		if url, ok := strings.CutPrefix(strings.TrimSpace(line), "curl "); ok && strings.Contains(url, "/documents/") {
			gateways = append(gateways, strings.TrimSuffix(url, "floor-plan"))
		}
	}
	if len(gateways) != 3 {
		t.Errorf("it names %d gateways: %s", len(gateways), said[:n])
	}
	alike := func(document string) bool {
		seen := make(map[string]bool)
		for _, gateway := range gateways {
			resp, err := http.Get(gateway + document)
			if err != nil {
				t.Fatal(err)
			}
			token, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if payload, err := decodePayload(strings.TrimSpace(string(token))); err != nil || !strings.Contains(payload, strconv.Quote(document)) {
				t.Errorf("%s%s: %q", gateway, document, token)
			}
			seen[string(token)] = true
		}
		return len(seen) == 1
	}
	// On a busy machine, the store may once be too slow for the example's time-out.
	if !alike("floor-plan") && !alike("second") && !alike("third") {
		t.Error("three gateways have different tokens")
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v: %s", err, output.Bytes())
	}
	if err := syscall.Kill(-cmd.Process.Pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("it left processes behind: %v", err)
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
}

func decodePayload(jwt string) (string, error) {
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		return "", errors.New("not a token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	return string(payload), err
}
