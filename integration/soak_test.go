package integration

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/emulator"
)

// rotatingAPI accepts one key at a time.
type rotatingAPI struct {
	*standIn
	current atomic.Value // string
}

func (a *rotatingAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if key == a.current.Load() {
		r.Header.Set("Authorization", "Bearer "+testKey)
	} else {
		r.Header.Set("Authorization", "Bearer pdf_live_processor")
	}
	a.standIn.ServeHTTP(w, r)
}

// TestLoadAndChange mixes readers of a few hot documents, of ever new ones, and
// hostile requests with a reload every second, faults of the API and two
// rotations of the key. It takes six seconds; VIEWER_SESSION_SOAK=10m makes it
// longer.
func TestLoadAndChange(t *testing.T) {
	length := 6 * time.Second
	if text := os.Getenv("VIEWER_SESSION_SOAK"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	s := newStage(t)
	api := &rotatingAPI{standIn: s.api}
	srv := httptest.NewServer(api)
	t.Cleanup(srv.Close)
	key := "pdf_live_soak_0"
	api.current.Store(key)
	file := s.logFile + ".key"
	rotate := func(next string) {
		t.Helper()
		// The file first, as an operator does.
		if err := os.WriteFile(file, []byte(next+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		api.current.Store(next)
	}
	rotate(key)
	site := func(generation int) string {
		return strings.ReplaceAll(fmt.Sprintf(`GATEWAY {
	header X-Config %d
	viewer_session {
		endpoint %s/viewer/sessions
		api_key {file.%s}
		mint_rate off
		timeout 2s
		document_path /documents/:id
	}
	reverse_proxy APP {
		transport http {
			keepalive off # else its own connections outlive the config
		}
	}
}
`, generation, srv.URL, file), "\\", "/")
	}
	s.load(site(0))

	const hot = 10
	for i := range hot {
		s.token(fmt.Sprint("/documents/hot", i))
	}
	// What the app sees: never a client's value, and of each document one
	// token for each key.
	tokens := make(map[string]map[string]bool)
	var forgeries []string
	s.app.setWatch(func(request seen) {
		if strings.Contains(request.head, forgery) {
			forgeries = append(forgeries, request.head)
		}
		document := strings.Fields(request.head)[1]
		for _, token := range request.values("X-Viewer-Session") {
			if tokens[document] == nil {
				tokens[document] = make(map[string]bool)
			}
			tokens[document][token] = true
		}
	})
	tokensOfHot0 := func() int {
		s.app.mu.Lock()
		defer s.app.mu.Unlock()
		return len(tokens["/documents/hot0"])
	}
	atRotation := 0
	runtime.GC()
	goroutines := runtime.NumGoroutine()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)

	var stop atomic.Bool
	var served, lost, cold, hostile, reloads atomic.Int64
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	get := func(path string, header ...string) (int, error) {
		req, err := http.NewRequest("GET", "http://"+s.gateway+path, nil)
		if err != nil {
			return 0, err
		}
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := client.Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, err
	}
	var wg sync.WaitGroup
	for range 4 { // readers of hot documents: none may fail, whatever happens
		wg.Go(func() {
			for !stop.Load() {
				status, err := get(fmt.Sprint("/documents/hot", rand.IntN(hot)), "X-Viewer-Session", forgery, "Cookie", "honest=1")
				switch {
				case err != nil:
					lost.Add(1) // a listener that changes hands may drop a connection: Caddy's, not ours
				case status != 200:
					t.Errorf("status %d for a document whose token is valid", status)
				default:
					served.Add(1)
				}
			}
		})
	}
	wg.Go(func() { // ever new documents, which fail while the API does
		for i := 0; !stop.Load(); i++ {
			status, err := get(fmt.Sprint("/documents/cold", i))
			switch {
			case err != nil:
				lost.Add(1)
			case status == 200 || status == 502 || status == 503 || status == 504:
				cold.Add(1)
			default:
				t.Errorf("status %d for a new document", status)
			}
		}
	})
	wg.Go(func() { // hostile requests
		list := attacks()
		for i := 0; !stop.Load(); i++ {
			a := list[i%len(list)]
			if a.status != 0 || a.document != "-" || a.target == "" || strings.ContainsAny(a.target, "\x00\\ {\"") {
				continue
			}
			if _, err := get(a.target, "X-Viewer-Session", forgery); err == nil {
				hostile.Add(1)
			}
		}
	})
	faults := []emulator.Fault{
		{Mode: "status", Status: 500},
		{},
		{Mode: "hang"},
		{},
		{Mode: "rubbish"},
		{Delay: caddy.Duration(50 * time.Millisecond)},
		{Mode: "break_off"},
		{},
		{Mode: "status", Status: 429, RetryAfter: "1"},
		{},
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	start := time.Now()
	for i := 0; time.Since(start) < length; i++ {
		<-tick.C
		s.api.SetFault(faults[i%len(faults)])
		if i%2 == 0 {
			s.load(site(i + 1))
			reloads.Add(1)
		}
		if elapsed := time.Since(start); elapsed > length/3 && key == "pdf_live_soak_0" || elapsed > 2*length/3 && key == "pdf_live_soak_1" {
			atRotation = tokensOfHot0()
			key = fmt.Sprintf("pdf_live_soak_%d", key[len(key)-1]-'0'+1)
			rotate(key)
		}
	}
	s.api.SetFault(emulator.Fault{})
	// With the API well, the last key soon proves itself.
	for deadline := time.Now().Add(20 * time.Second); tokensOfHot0() == atRotation && time.Now().Before(deadline); {
		<-tick.C
	}
	if tokensOfHot0() == atRotation {
		t.Error("no token was minted with the last key")
	}
	stop.Store(true)
	wg.Wait()
	client.CloseIdleConnections()
	t.Logf("%d hot and %d cold requests, %d hostile ones, %d connections lost, %d reloads", served.Load(), cold.Load(), hostile.Load(), lost.Load(), reloads.Load())
	if served.Load() == 0 || cold.Load() == 0 || hostile.Load() == 0 {
		t.Error("nothing was tested")
	}
	if lost.Load() > 1+(served.Load()+cold.Load())/200 {
		t.Errorf("%d connections were lost", lost.Load())
	}
	s.app.setWatch(nil)
	if len(forgeries) > 0 {
		t.Errorf("the app saw %d clients' values, the first in\n%s", len(forgeries), forgeries[0])
	}
	for document, seen := range tokens {
		keys := 3
		if strings.HasPrefix(document, "/documents/cold") {
			keys = 1
		}
		if len(seen) > keys {
			t.Errorf("%s: %d different tokens, more than keys", document, len(seen))
		}
	}

	// Everything is given back. The last config's own goroutines remain.
	s.load(site(0))
	s.eventually("/documents/hot0")
	deadline := time.Now().Add(20 * time.Second)
	for runtime.NumGoroutine() > goroutines+20 && time.Now().Before(deadline) {
		<-tick.C
	}
	if now := runtime.NumGoroutine(); now > goroutines+20 {
		stacks := make([]byte, 1<<20)
		t.Errorf("%d goroutines, %d before\n%s", now, goroutines, stacks[:runtime.Stack(stacks, true)])
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}
