package emulator

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
)

func TestFaultAnswers(t *testing.T) {
	for _, tc := range []struct {
		name   string
		fault  Fault
		status int
		check  func(resp *http.Response, body string, err error) bool
	}{
		{"status", Fault{Mode: "status", Status: 503}, 503, func(resp *http.Response, body string, _ error) bool {
			_, retryAfter := resp.Header["Retry-After"]
			return !retryAfter && strings.Contains(body, `"requestId"`) && strings.Contains(body, `"status":503`)
		}},
		{"Retry-After verbatim", Fault{Mode: "status", Status: 429, RetryAfter: "in a while"}, 429, func(resp *http.Response, _ string, _ error) bool {
			return resp.Header.Get("Retry-After") == "in a while"
		}},
		{"rubbish", Fault{Mode: "rubbish"}, 200, func(resp *http.Response, body string, _ error) bool {
			return strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") && strings.HasPrefix(body, "<!doctype html>")
		}},
		{"empty", Fault{Mode: "empty"}, 201, func(_ *http.Response, body string, err error) bool {
			return body == "" && err == nil
		}},
		{"huge", Fault{Mode: "huge"}, 201, func(_ *http.Response, body string, err error) bool {
			return len(body) >= 10_000_000 && json.Valid([]byte(body)) && err == nil
		}},
		{"redirect", Fault{Mode: "redirect", Location: "http://127.0.0.1:1/x"}, 307, func(resp *http.Response, _ string, _ error) bool {
			return resp.Header.Get("Location") == "http://127.0.0.1:1/x"
		}},
		{"body", Fault{Mode: "body", Body: `{"jwt": null}`}, 201, func(resp *http.Response, body string, _ error) bool {
			return body == `{"jwt": null}` && resp.Header.Get("Content-Type") == "application/json"
		}},
		{"break_off", Fault{Mode: "break_off"}, 201, func(resp *http.Response, body string, err error) bool {
			return errors.Is(err, io.ErrUnexpectedEOF) && strings.HasPrefix(body, `{"jwt":"`) && int64(len(body)) == resp.ContentLength/2
		}},
		{"drip", Fault{Mode: "drip", Delay: 1}, 201, func(resp *http.Response, body string, err error) bool {
			return err == nil && json.Valid([]byte(body)) && resp.ContentLength == int64(len(body))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := New(Options{Fault: tc.fault})
			server := httptest.NewServer(e)
			defer server.Close()
			client := server.Client()
			client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

			r, _ := http.NewRequest("POST", server.URL+"/viewer/sessions", strings.NewReader(testBody))
			r.Header = request("POST", "/", "").Header
			resp, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if resp.StatusCode != tc.status || !tc.check(resp, string(body), err) {
				t.Errorf("status %d, headers %v, %d bytes %.200q, %v", resp.StatusCode, resp.Header, len(body), body, err)
			}
			s := e.Stats()
			if tc.status == 201 && (s.Mints != 1 || s.Documents["doc1"] != 1) || tc.status != 201 && s.Refused[tc.status] != 1 {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

func TestFaultsKeepRefusing(t *testing.T) {
	e := New(Options{Fault: Fault{Mode: "break_off"}})
	r := request("POST", "/viewer/sessions", testBody)
	r.Header.Del("Authorization")
	if rec, aborted := serve(e, r); rec.Code != 401 || !aborted {
		t.Errorf("status %d, aborted %t", rec.Code, aborted)
	}
}

func TestDelays(t *testing.T) {
	const second = caddy.Duration(time.Second)
	for _, tc := range []struct {
		name   string
		fault  Fault
		status int
		after  func(body int) time.Duration
	}{
		{"normal answer", Fault{Delay: second}, 201, func(int) time.Duration { return time.Second }},
		{"error", Fault{Delay: second, Mode: "status", Status: 500}, 500, func(int) time.Duration { return time.Second }},
		{"drip", Fault{Delay: second, Mode: "drip"}, 201, func(body int) time.Duration { return time.Duration(body) * time.Second }},
		{"none", Fault{}, 201, func(int) time.Duration { return 0 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				rec, _ := serve(New(Options{Fault: tc.fault}), request("POST", "/viewer/sessions", testBody))
				if took, want := time.Since(start), tc.after(rec.Body.Len()); rec.Code != tc.status || took != want {
					t.Errorf("status %d after %v, want %d after %v", rec.Code, took, tc.status, want)
				}
			})
		})
	}
}

// A client that leaves, and Close, both end the waiting.
func TestWaitingEnds(t *testing.T) {
	for _, tc := range []struct {
		name        string
		fault       Fault
		leftMints   int64 // counted although the client has left
		closeAborts bool
	}{
		{name: "delay", fault: Fault{Delay: caddy.Duration(time.Hour)}},
		{name: "hang", fault: Fault{Mode: "hang"}, closeAborts: true},
		{name: "drip", fault: Fault{Mode: "drip", Delay: caddy.Duration(time.Hour)}, leftMints: 1},
	} {
		for _, closing := range []bool{false, true} {
			name := tc.name + ", client leaves"
			if closing {
				name = tc.name + ", Close"
			}
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					start := time.Now()
					e := New(Options{Fault: tc.fault})
					ctx, leave := context.WithCancel(t.Context())
					defer leave()
					var rec *httptest.ResponseRecorder
					var aborted, done bool
					go func() {
						rec, aborted = serve(e, request("POST", "/viewer/sessions", testBody).WithContext(ctx))
						done = true
					}()
					synctest.Wait()
					if s := e.Stats(); done || s.InFlight != 1 {
						t.Fatalf("it did not wait: done %t, stats %+v", done, s)
					}

					if closing {
						e.Close()
						e.Close()
					} else {
						leave()
					}
					synctest.Wait()
					s := e.Stats()
					if !done || s.InFlight != 0 || time.Since(start) != 0 {
						t.Fatalf("it still waits: done %t, stats %+v", done, s)
					}
					if closing {
						if aborted != tc.closeAborts || !aborted && !json.Valid(rec.Body.Bytes()) {
							t.Errorf("aborted %t, body %q", aborted, rec.Body)
						}
					} else if s.Mints != tc.leftMints || json.Valid(rec.Body.Bytes()) {
						t.Errorf("answered all the same: %+v %q", s, rec.Body)
					}
				})
			})
		}
	}
}

// The same over a real connection, where the server has to notice.
func TestHangUntilTheClientLeaves(t *testing.T) {
	arrived := make(chan struct{})
	e := New(Options{Fault: Fault{Mode: "hang"}, OnMint: func(*http.Request, []byte) { close(arrived) }})
	server := httptest.NewServer(e)
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		<-arrived
		leave()
	}()
	r, _ := http.NewRequestWithContext(ctx, "POST", server.URL+"/viewer/sessions", strings.NewReader(testBody))
	if resp, err := server.Client().Do(r); !errors.Is(err, context.Canceled) {
		t.Errorf("answered: %v, %v", resp, err)
	}
	server.Close() // waits for the handler
	if s := e.Stats(); s.Requests != 1 || s.InFlight != 0 || len(s.Refused) != 0 || s.Mints != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestFaultForOneDocument(t *testing.T) {
	e := New(Options{Fault: Fault{Mode: "status", Status: 500, DocumentID: "bad", Times: 1}})
	for _, tc := range []struct {
		body string
		want int
	}{
		{`{"allowed_documents":[{"document_id":"good"}]}`, 201},
		{`nope`, 400},
		{`{"allowed_documents":[{"document_id":"good"},{"document_id":"bad"}]}`, 500},
		{`{"allowed_documents":[{"document_id":"bad"}]}`, 201},
	} {
		if rec, _ := serve(e, request("POST", "/viewer/sessions", tc.body)); rec.Code != tc.want {
			t.Errorf("%s: status %d, want %d", tc.body, rec.Code, tc.want)
		}
	}
}

func TestFaultTimes(t *testing.T) {
	for times, want := range map[int]int64{0: 5, 1: 1, 3: 3} {
		e := New(Options{})
		e.SetFault(Fault{Mode: "status", Status: 500, Times: times})
		for range 5 {
			serve(e, request("POST", "/viewer/sessions", testBody))
			authenticate(e, "doc1", "x") // not what a fault is for
		}
		if s := e.Stats(); s.Refused[500] != want || s.Mints != 5-want {
			t.Errorf("times %d: %+v", times, s)
		}
	}
}

func TestFaultOverHTTP(t *testing.T) {
	for _, tc := range []struct{ body, want string }{
		{`{"delay":"300ms","mode":"status","status":503,"retry_after":"2","document_id":"a","times":2}`, ""},
		{`{"delay":1000}`, ""},
		{`{"mode":"drip","delay":"1d"}`, ""},
		{`{}`, ""},
		{``, "EOF"},
		{`{"mode":"sleepy"}`, `unknown mode \"sleepy\"`},
		{`{"mode":"status"}`, "needs a status"},
		{`{"mode":"status","status":200}`, "needs a status"},
		{`{"mode":"redirect"}`, "needs a location"},
		{`{"mode":"drip"}`, "needs a delay"},
		{`{"delay":"soon"}`, "invalid duration"},
		{`{"delay":"-1s"}`, "negative"},
		{`{"times":-1}`, "negative"},
		{`{"moode":"hang"}`, "moode"},
		{`{} {}`, "follows"},
	} {
		e := New(Options{Fault: Fault{Mode: "empty"}})
		rec, _ := serve(e, request("PUT", "/emulator/fault", tc.body))
		if tc.want == "" {
			if rec.Code != 204 || e.takeFault([]string{"a"}).Mode == "empty" {
				t.Errorf("%s: %d %s", tc.body, rec.Code, rec.Body)
			}
		} else if rec.Code != 400 || !strings.Contains(rec.Body.String(), tc.want) || e.takeFault(nil).Mode != "empty" {
			t.Errorf("%s: %d %s", tc.body, rec.Code, rec.Body)
		}
	}

	e := New(Options{})
	serve(e, request("PUT", "/emulator/fault", `{"delay":"300ms"}`))
	if got := time.Duration(e.takeFault(nil).Delay); got != 300*time.Millisecond {
		t.Errorf("delay %v", got)
	}
}

func TestInvalidFaultPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a fault that would do nothing was taken")
		}
	}()
	New(Options{}).SetFault(Fault{Mode: "typo"})
}
