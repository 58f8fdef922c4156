package dws

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

// dwsTest mints at a server. What it asks for is always the same.
type dwsTest struct {
	transport http.RoundTripper
	endpoint  *url.URL
}

func newDWSTest(t testing.TB, handler http.HandlerFunc) dwsTest {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return dwsTestAt(t, server.URL+"/viewer/sessions")
}

func dwsTestAt(t testing.TB, endpoint string) dwsTest {
	t.Helper()
	u, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	return dwsTest{dwstest.Transport(t), u}
}

func (d dwsTest) call(apiKey string) Call {
	request := &Request{DocumentID: "doc", Permissions: []string{"read", "write"}, UserID: "ann", Claims: `,"team":"blue"`, TTL: time.Hour}
	return Call{Request: request, Transport: d.transport, Endpoint: d.endpoint, APIKey: apiKey, Now: time.Now(), Clock: clock.Now}
}

func (d dwsTest) mint() (Reply, error) { return d.mintWithin(30 * time.Second) }

func (d dwsTest) mintWithin(timeout time.Duration) (Reply, error) {
	ctx, cancel := context.WithTimeout(callContext(), timeout)
	defer cancel()
	return d.call(dwstest.Key).Send(ctx)
}

// callContext is for Caddy's transport, which replaces placeholders.
func callContext() context.Context {
	return context.WithValue(context.Background(), caddy.ReplacerCtxKey, caddy.NewReplacer())
}

// wantError mints and returns the failure, which must hold neither key nor token.
func (d dwsTest) wantError(t *testing.T, want Reason) *Error {
	t.Helper()
	return wantDWSError(t, want)(d.mint())
}

func wantDWSError(t *testing.T, want Reason) func(Reply, error) *Error {
	return func(got Reply, err error) *Error {
		t.Helper()
		f, ok := errors.AsType[*Error](err)
		if !ok {
			t.Fatalf("got %+v, %v", got, err)
		}
		if f.Reason != want {
			t.Errorf("got the reason %s (%v), want %s", f.Reason, f, want)
		}
		if got.JWT != "" {
			t.Errorf("beside the failure stands a token: %+v", got)
		}
		if strings.Contains(f.Error(), dwstest.Key) || strings.Contains(f.Error(), "eyJ") {
			t.Errorf("the error holds a key or a token: %v", f)
		}
		return f
	}
}

func TestMintRequestIsTheDocumentedOne(t *testing.T) {
	type request struct {
		method, target, host, body string
		header                     http.Header
		length                     int64
		encoding                   []string
	}
	requests := make(chan request, 1)
	exp := time.Now().Add(40 * time.Minute).Unix()
	jwt := dwstest.JWT(map[string]any{"exp": exp})
	d := newDWSTest(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		requests <- request{r.Method, r.RequestURI, r.Host, string(body), r.Header, r.ContentLength, r.TransferEncoding}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"jwt":%q}`, jwt)
	})
	d.endpoint.RawQuery = "region=eu"
	before := time.Now().Add(time.Hour).Unix()
	minted, err := d.mint()
	after := time.Now().Add(time.Hour).Unix()
	if err != nil || minted.JWT != jwt || minted.Exp != exp || !minted.HasExp || minted.StatusCode != 201 {
		t.Fatalf("got %+v, %v", minted, err)
	}

	got := <-requests
	var sent struct {
		Exp int64 `json:"exp"`
	}
	if err := json.Unmarshal([]byte(got.body), &sent); err != nil || sent.Exp < before || sent.Exp > after {
		t.Errorf("exp is %d, want from %d to %d", sent.Exp, before, after)
	}
	wantBody := fmt.Sprintf(`{"allowed_documents":[{"document_id":"doc","document_permissions":["read","write"],"permissions":["read","write"]}],"exp":%d,"user_id":"ann","team":"blue"}`, sent.Exp)
	want := request{
		method: "POST", target: "/viewer/sessions?region=eu", host: d.endpoint.Host, body: wantBody, length: int64(len(wantBody)),
		// All there is: above all no Idempotency-Key, which would let
		// net/http repeat the request by itself.
		header: http.Header{
			"Authorization":   {"Bearer " + dwstest.Key},
			"Content-Type":    {"application/json"},
			"Accept":          {"application/json"},
			"Accept-Encoding": {"gzip"},
			"User-Agent":      {"caddy-viewer-session"},
			"Content-Length":  {strconv.Itoa(len(wantBody))},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		var visits atomic.Int32
		other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			visits.Add(1)
			w.WriteHeader(http.StatusCreated)
			io.WriteString(w, dwstest.Reply(map[string]any{}))
		}))
		t.Cleanup(other.Close)
		var requests atomic.Int32
		d := newDWSTest(t, func(w http.ResponseWriter, r *http.Request) {
			if requests.Add(1); r.URL.Path != "/viewer/sessions" {
				visits.Add(1)
			}
			if status%2 == 0 { // elsewhere, and on the same host
				w.Header().Set("Location", other.URL+"/viewer/sessions")
			} else {
				w.Header().Set("Location", "/elsewhere")
			}
			w.WriteHeader(status)
		})
		f := d.wantError(t, Unavailable)
		if visits.Load() != 0 || requests.Load() != 1 {
			t.Errorf("%d: followed %d times, asked %d times", status, visits.Load(), requests.Load())
		}
		if want := fmt.Sprintf("%s answered %d; redirects are not followed, so that the key stays with one host: check endpoint", d.endpoint.Host, status); f.Error() != want || f.Unsent {
			t.Errorf("got  %v\nwant %s", f, want)
		}
	}
}

// rawServer answers each connection, once the request's header has come, with
// these bytes, and closes it.
func rawServer(t *testing.T, answer func(conn net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				buf := make([]byte, 4096)
				var got []byte
				for !bytes.Contains(got, []byte("\r\n\r\n")) {
					n, err := conn.Read(buf)
					if got = append(got, buf[:n]...); err != nil {
						return
					}
				}
				answer(conn)
			}()
		}
	}()
	t.Cleanup(func() { listener.Close(); <-done })
	return "http://" + listener.Addr().String() + "/viewer/sessions"
}

// A server that echoes what it got must not bring the key into an error by way
// of net/http, which quotes malformed answers.
func TestMalformedAnswersAreNotQuotedWithTheKey(t *testing.T) {
	jwt := dwstest.JWT(map[string]any{"exp": 1})
	for _, answer := range []string{
		dwstest.Key + "\r\n\r\n",
		"Authorization: Bearer " + dwstest.Key + "\r\n\r\n",
		jwt + "\r\n\r\n",
		"HTTP/1.1 " + dwstest.Key + " OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nAuthorization Bearer " + dwstest.Key + "\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: " + dwstest.Key + "\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + dwstest.Key + "\r\n\r\n",
	} {
		t.Run(answer, func(t *testing.T) {
			d := dwsTestAt(t, rawServer(t, func(conn net.Conn) { io.WriteString(conn, answer) }))
			if f := d.wantError(t, Unavailable); f.Unsent {
				t.Errorf("unsent, although the server answered: %v", f)
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	f := dwsTestAt(t, "http://"+listener.Addr().String()+"/").wantError(t, Unavailable)
	if !f.Unsent || !strings.Contains(f.Error(), listener.Addr().String()+" cannot be reached: ") {
		t.Errorf("got %v, unsent %v", f, f.Unsent)
	}
}

func TestUntrustedCertificate(t *testing.T) {
	var requests atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requests.Add(1) }))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	f := dwsTestAt(t, server.URL).wantError(t, Unavailable)
	if requests.Load() != 0 || !strings.Contains(f.Error(), "certificate") {
		t.Errorf("got %v, and %d requests", f, requests.Load())
	}
}

// A request that was sent may have been executed, whatever became of the answer.
func TestBrokenConnectionIsNotUnsentAndNotRepeated(t *testing.T) {
	var requests atomic.Int32
	d := newDWSTest(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if requests.Add(1) == 1 {
			w.WriteHeader(http.StatusCreated)
			io.WriteString(w, dwstest.Reply(map[string]any{}))
			return
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		conn.Close()
	})
	if _, err := d.mint(); err != nil { // leaves an idle connection
		t.Fatal(err)
	}
	f := d.wantError(t, Unavailable)
	if f.Unsent || requests.Load() != 2 {
		t.Errorf("unsent is %v after %d requests", f.Unsent, requests.Load())
	}
	// Broken off in the middle of the answer.
	half := newDWSTest(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, `{"jwt":"`)
	})
	if f := half.wantError(t, Unavailable); f.Unsent {
		t.Errorf("unsent: %v", f)
	}
}

func TestMintTimesOut(t *testing.T) {
	const patience = 50 * time.Millisecond
	for name, handler := range map[string]http.HandlerFunc{
		"before the answer": func(_ http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		},
		"within the answer": func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusCreated)
			io.WriteString(w, `{"jwt":`)
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDWSTest(t, handler)
			start := time.Now()
			f := wantDWSError(t, Timeout)(d.mintWithin(patience))
			if took := time.Since(start); took < patience {
				t.Errorf("gave up after %v", took)
			}
			if f.Unsent || !strings.HasPrefix(f.Error(), d.endpoint.Host+" did not answer in time: ") {
				t.Errorf("got %v, unsent %v", f, f.Unsent)
			}
		})
	}
}

// An error answer that hangs is an answer all the same: its status counts.
func TestErrorAnswerThatHangs(t *testing.T) {
	d := newDWSTest(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusForbidden)
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	wantDWSError(t, KeyRefused)(d.mintWithin(50 * time.Millisecond))
}

// bodyUntilCancelled ends in an orderly way when the request is given up.
type bodyUntilCancelled struct {
	io.Reader
	ctx context.Context
}

func (b bodyUntilCancelled) Read(p []byte) (int, error) {
	if n, err := b.Reader.Read(p); err == nil {
		return n, nil
	}
	<-b.ctx.Done()
	return 0, io.EOF
}

func (bodyUntilCancelled) Close() error { return nil }

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Half an answer that ends because the request is given up is a time-out.
func TestAnswerThatEndsWhenItIsGivenUp(t *testing.T) {
	d := dwsTestAt(t, "https://api.example.com/viewer/sessions")
	d.transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 201, Request: r, Body: bodyUntilCancelled{strings.NewReader(`{"jwt":`), r.Context()}}, nil
	})
	wantDWSError(t, Timeout)(d.mintWithin(10 * time.Millisecond))
}

func TestMintThatIsCancelledBeforehand(t *testing.T) {
	var requests atomic.Int32
	d := newDWSTest(t, func(http.ResponseWriter, *http.Request) { requests.Add(1) })
	ctx, cancel := context.WithCancel(callContext())
	cancel()
	wantDWSError(t, Timeout)(d.call(dwstest.Key).Send(ctx))
	if requests.Load() != 0 {
		t.Error("the request was sent")
	}
}

// After 101 net/http hands the connection over and forgets the context. A mint
// ends within its timeout all the same.
func TestSwitchedProtocolDoesNotHang(t *testing.T) {
	release := make(chan struct{})
	d := dwsTestAt(t, rawServer(t, func(conn net.Conn) {
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		<-release
	}))
	type outcome struct {
		reply Reply
		err   error
	}
	ended := make(chan outcome, 1)
	go func() {
		reply, err := d.mintWithin(100 * time.Millisecond)
		ended <- outcome{reply, err}
	}()
	select {
	case got := <-ended:
		close(release)
		if f, ok := errors.AsType[*Error](got.err); !ok || f.Unsent {
			t.Errorf("got %+v, %v", got.reply, got.err)
		}
	case <-time.After(3 * time.Second):
		close(release)
		t.Error("a timeout of 100ms has not ended the mint within 3s")
		<-ended
	}
}

func TestEarlyHintsAreSkipped(t *testing.T) {
	d := newDWSTest(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, dwstest.Reply(map[string]any{}))
	})
	if _, err := d.mint(); err != nil {
		t.Error(err)
	}
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	var connections atomic.Int32
	server := httptest.NewUnstartedServer(dwstest.Answering(201, dwstest.Reply(map[string]any{})))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	d := dwsTestAt(t, server.URL)
	for range 10 {
		if _, err := d.mint(); err != nil {
			t.Fatal(err)
		}
	}
	if got := connections.Load(); got != 1 {
		t.Errorf("%d connections for 10 mints in a row", got)
	}
}
