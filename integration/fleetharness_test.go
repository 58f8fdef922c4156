package integration

import (
	"bytes"
	"context"
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
	_ "github.com/viewersession/caddy-viewer-session/redis"
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
	text := strings.Replace(string(caddyfile), "{\n", "{\n\tdebug\n", 1)
	text = strings.Replace(text, "\n\treverse_proxy", "\n\tlog\n\treverse_proxy", 1)
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
			ended <- err // for the cleanup
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
