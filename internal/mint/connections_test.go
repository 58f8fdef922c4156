package mint

import (
	"fmt"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
	"github.com/viewersession/caddy-viewer-session/internal/relaytest"
)

// relayed is a minter whose API is a real server behind a relay.
type relayed struct {
	*Minter
	*relaytest.Relay
	requests atomic.Int32
	server   *httptest.Server
}

const relayedTimeout = 1000 * time.Millisecond

func newRelayed(t *testing.T, http2 bool, answer http.HandlerFunc) *relayed {
	t.Helper()
	if answer == nil {
		answer = answerWithToken
	}
	r := new(relayed)
	r.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.requests.Add(1)
		if want := map[bool]int{true: 2, false: 1}[http2]; req.ProtoMajor != want {
			t.Errorf("HTTP/%d, want HTTP/%d", req.ProtoMajor, want)
		}
		if _, ok := req.Header["Idempotency-Key"]; ok {
			t.Error("an idempotency key")
		}
		answer(w, req)
	}))
	settings := []string{`"tls":{"insecure_skip_verify":true}`, `"keep_alive":{"max_idle_conns_per_host":256}`}
	if http2 {
		r.server.EnableHTTP2 = true
	} else {
		settings = append(settings, `"versions":["1.1"]`)
	}
	r.server.StartTLS()
	t.Cleanup(r.server.Close)
	r.Relay = relaytest.New(t, r.server.Listener.Addr().String())
	r.Minter = New(Config{
		Endpoint: &url.URL{Scheme: "https", Host: r.Address, Path: "/viewer/sessions"}, Timeout: relayedTimeout, Rate: math.Inf(1),
		Source: &fakeSource{transport: NewTransport(dwstest.Transport(t, settings...), relayedTimeout), key: NewKey(dwstest.Key)},
		Now:    clock.Now, Observe: unobserved,
	})
	return r
}

func (r *relayed) mintOne(document string) error {
	_, err := mintOne(r.Minter, document)
	return err
}

// mintAtOnce mints for so many documents at the same time.
func (r *relayed) mintAtOnce(t *testing.T, name string, documents int) (failed int) {
	t.Helper()
	var wg sync.WaitGroup
	var failures atomic.Int32
	for i := range documents {
		wg.Go(func() {
			if f := r.mintOne(fmt.Sprint(name, i)); f != nil {
				failures.Add(1)
			}
		})
	}
	wg.Wait()
	return int(failures.Load())
}

// slowly answers after so long that mints at the same time need a connection each.
func slowly(w http.ResponseWriter, _ *http.Request) {
	<-time.After(30 * time.Millisecond) // the API's work
	answerWithToken(w, nil)
}

// One HTTP/2 connection carries all mints. When it silently carries nothing any
// more, pings find out, and the mint goes out on another one, within its time.
func TestSilentHTTP2Connection(t *testing.T) {
	r := newRelayed(t, true, nil)
	if f := r.mintOne("first"); f != nil {
		t.Fatal(f)
	}
	if n := r.Silence(); n != 1 {
		t.Fatalf("%d connections", n)
	}
	start := time.Now()
	if failed := r.mintAtOnce(t, "doc", 20); failed > 0 {
		t.Errorf("%d of 20 mints failed", failed)
	}
	if took := time.Since(start); took > relayedTimeout+time.Second {
		t.Errorf("took %s", took)
	}
	if got := r.Total(); got > 25 {
		t.Errorf("%d connections have been made", got)
	}
	if f := r.mintOne("later"); f != nil {
		t.Error(f)
	}
}

// A pool of dead HTTP/1.1 connections costs one time-out, and not one for each.
func TestSilentHTTP1Connections(t *testing.T) {
	r := newRelayed(t, false, slowly)
	if failed := r.mintAtOnce(t, "first", 20); failed > 0 {
		t.Fatalf("%d mints failed", failed)
	}
	if n := r.Silence(); n < 10 {
		t.Fatalf("%d connections, too few to tell", n)
	}
	start := time.Now()
	f := r.mintOne("doc")
	if reasonOf(f) != dws.Timeout {
		t.Fatalf("got %v, want a time-out: it may have been minted", f)
	}
	for i := range 10 {
		if f := r.mintOne(fmt.Sprint("later", i)); f != nil {
			t.Errorf("%d: %v", i, f)
		}
	}
	if took := time.Since(start); took > relayedTimeout+time.Second {
		t.Errorf("back after %s", took)
	}
}

// A connection that was closed meanwhile costs nobody a token: what was sent on
// it is sent once more.
func TestResetConnections(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("HTTP/2 ", http2), func(t *testing.T) {
			r := newRelayed(t, http2, slowly)
			for round := range 3 {
				if failed := r.mintAtOnce(t, fmt.Sprint(round, "-"), 20); failed > 0 {
					t.Errorf("round %d: %d mints failed", round, failed)
				}
				r.Reset()
			}
		})
	}
}

// A request that was sent on a new connection may have been executed.
func TestResetOfANewConnectionIsNotRepeated(t *testing.T) {
	var r *relayed
	r = newRelayed(t, false, func(http.ResponseWriter, *http.Request) { r.Reset() })
	if f := r.mintOne("doc"); reasonOf(f) != dws.Unavailable {
		t.Errorf("got %v", f)
	}
	if got := r.requests.Load(); got != 1 {
		t.Errorf("%d requests", got)
	}
}

// Nor is one that fails after the answer has begun.
func TestAnswerThatEndsNeverIsNotAskedForAgain(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("HTTP/2 ", http2), func(t *testing.T) {
			var broken atomic.Bool
			r := newRelayed(t, http2, func(w http.ResponseWriter, req *http.Request) {
				if !broken.Load() {
					slowly(w, req)
					return
				}
				w.WriteHeader(201)
				fmt.Fprint(w, `{"jwt":`)
				_ = http.NewResponseController(w).Flush()
				<-req.Context().Done()
			})
			if f := r.mintOne("doc"); f != nil {
				t.Fatal(f)
			}
			broken.Store(true)
			if f := r.mintOne("doc2"); reasonOf(f) != dws.Timeout {
				t.Errorf("got %v", f)
			}
			if got := r.requests.Load(); got != 2 {
				t.Errorf("%d requests", got)
			}
		})
	}
}

// An API that is merely slow is not dialed by every mint.
func TestSlowAPIIsNotDialedAgainAndAgain(t *testing.T) {
	r := newRelayed(t, true, func(w http.ResponseWriter, req *http.Request) {
		select {
		case <-req.Context().Done():
		case <-time.After(relayedTimeout - 400*time.Millisecond): // the API's work
		}
		slowly(w, req)
	})
	for round := range 3 {
		if failed := r.mintAtOnce(t, fmt.Sprint(round, "-"), 10); failed > 0 {
			t.Errorf("%d mints failed", failed)
		}
	}
	if got := r.Total(); got > 12 { // as many as wait for the first handshake
		t.Errorf("%d connections", got)
	}
}

// A server that takes its leave with GOAWAY does so without harm.
func TestGoAway(t *testing.T) {
	r := newRelayed(t, true, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Connection", "close") // by HTTP/2 a GOAWAY
		slowly(w, req)
	})
	for round := range 5 {
		if failed := r.mintAtOnce(t, fmt.Sprint(round, "-"), 10); failed > 0 {
			t.Errorf("round %d: %d mints failed", round, failed)
		}
	}
}

func TestIdleConnectionsAreDroppedOnceASecond(t *testing.T) {
	var dropped int
	c := NewTransport(roundTripper(func(*http.Request) (*http.Response, error) { return nil, net.ErrClosed }), time.Second)
	c.(*connections).closeIdle = func() { dropped++ }
	for range 100 {
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://127.0.0.1/", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.RoundTrip(req); err == nil {
			t.Error("no error")
		}
	}
	if dropped != 1 {
		t.Errorf("dropped %d times", dropped)
	}
}

// What is sent once more goes out on a fresh connection, whatever has become idle
// since connections were dropped last.
func TestSentOnceMoreOnAFreshConnection(t *testing.T) {
	r := newRelayed(t, false, slowly)
	for round := range 4 { // all within a second
		if failed := r.mintAtOnce(t, fmt.Sprint(round, "-"), 5); failed > 0 {
			t.Errorf("round %d: %d mints failed", round, failed)
		}
		r.Reset()
		if f := r.mintOne(fmt.Sprint("alone-", round)); f != nil {
			t.Errorf("round %d: %v", round, f)
		}
	}
}
