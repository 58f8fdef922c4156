package viewersession

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

// The API is down for half an hour while a thousand documents are open: nobody
// who has a document open notices. When it is back, there is no herd, and a
// minute later every token is fresh.
func TestHalfAnHourOfOutage(t *testing.T) {
	const documents = 1000
	for name, outage := range map[string]dwstest.Answer{
		"refused": dwstest.Unreachable, "503": dwstest.Failing(503), "429": dwstest.Failing(429, "Retry-After", "30"), "hangs": dwstest.Hanging, "key refused": dwstest.Failing(401),
	} {
		t.Run(name, func(t *testing.T) {
			withPool(t, func(s *poolSettings) { s.cacheSize = defaultCacheSize }, func(t *testing.T, p *poolTest) {
				// Documents are opened over a while, as people come.
				for i := range documents {
					p.want(fmt.Sprint("doc", i), resultMinted)
					time.Sleep(100 * time.Millisecond)
				}
				visit := func() {
					t.Helper()
					for i := range documents {
						start := time.Now()
						if _, _, f := p.get(t.Context(), testClaims(fmt.Sprint("doc", i))); f != nil {
							t.Fatalf("doc%d: %v, although its token is valid", i, f)
						}
						if took := time.Since(start); took > 0 {
							t.Fatalf("doc%d: its reader waited for %s, although its token is valid", i, took)
						}
					}
					synctest.Wait()
				}
				for range 15 {
					time.Sleep(time.Minute)
					visit()
				}
				p.api.Set(outage)
				calls := p.api.Count()
				for minute := range 30 {
					time.Sleep(time.Minute)
					visit()
					// Meanwhile a few new documents are asked for, and somebody's bad one.
					for i := range 5 {
						_, _, _ = p.get(t.Context(), testClaims(fmt.Sprint("new", minute, "-", i)))
					}
					_, _, _ = p.get(t.Context(), testClaims("bad"))
				}
				if tried := p.api.Count() - calls; tried > 30*60 {
					t.Errorf("%d mints were tried in half an hour of outage", tried)
				}

				p.api.Set(func(r dwstest.Request) (*http.Response, error) {
					if r.Document == "bad" {
						return dwstest.Failing(500)(r)
					}
					return dwstest.Grant(dwstest.Token(0, r.Exp))
				})
				calls = p.api.Count()
				back := time.Now()
				for time.Since(back) < time.Minute {
					visit()
					_, _, _ = p.get(t.Context(), testClaims("bad"))
					if spent := float64(p.api.Count() - calls); spent > defaultMintBurst+defaultMintRate*time.Since(back).Seconds() {
						t.Fatalf("%.0f mints in the first %s, more than mint_rate allows", spent, time.Since(back))
					}
					time.Sleep(500 * time.Millisecond)
				}
				for i := range documents {
					if tok := p.want(fmt.Sprint("doc", i), resultHit); time.Until(time.Unix(tok.exp, 0)) < 37*time.Minute {
						t.Fatalf("doc%d: a minute after the outage, %s of its token are left", i, time.Until(time.Unix(tok.exp, 0)))
					}
				}
			})
		})
	}
}

func TestValidTokenOutlivesAnOutage(t *testing.T) {
	for name, outage := range map[string]dwstest.Answer{
		"refused": dwstest.Unreachable, "5xx": dwstest.Failing(500), "hangs": dwstest.Hanging, "key refused": dwstest.Failing(403), "rejected": dwstest.Failing(404),
		"throttled": dwstest.Failing(429, "Retry-After", "60"), "rubbish": func(dwstest.Request) (*http.Response, error) {
			return dwstest.Respond(200, "<html>")
		},
	} {
		t.Run(name, func(t *testing.T) {
			withPool(t, nil, func(t *testing.T, p *poolTest) {
				first := p.want("doc", resultMinted)
				p.api.Set(outage)
				waited := 0
				for range 59 {
					time.Sleep(time.Minute)
					start := time.Now()
					tok, _, f := p.get(t.Context(), testClaims("doc"))
					if f != nil || tok != first {
						t.Fatalf("after %s: %v", time.Since(start), f)
					}
					if time.Since(start) > 0 {
						waited++
					}
				}
				if waited > 0 {
					t.Errorf("%d requests with a valid token waited for the API", waited)
				}
				time.Sleep(time.Minute) // exp is now
				if tok, _, f := p.get(t.Context(), testClaims("doc")); f == nil {
					t.Fatalf("a token that expired %s ago was handed out", time.Since(time.Unix(tok.exp, 0)))
				}
				p.api.Set(nil)
				time.Sleep(time.Minute)
				p.want("doc", resultMinted)
				p.want("doc", resultHit)
			})
		})
	}
}

func TestOneBadDocumentHoldsUpNobody(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(func(r dwstest.Request) (*http.Response, error) {
			if r.Document == "bad" {
				return dwstest.Failing(500)(r)
			}
			return dwstest.Grant(dwstest.Token(1, r.Exp))
		})
		for i := range 100 {
			p.wantFailure("bad", reasonUnavailable)
			p.want(fmt.Sprintf("good%d", i), resultMinted)
			time.Sleep(2 * time.Second)
		}
		// Not even where nobody else was there in between.
		for range 100 {
			p.wantFailure("bad", reasonUnavailable)
			time.Sleep(2 * time.Second)
		}
		p.want("last", resultMinted)
	})
}

func TestBadProbeDoesNotStandForAll(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(dwstest.Unreachable)
		for i := range 10 {
			p.wantFailure(fmt.Sprint("down", i), reasonUnavailable)
		}
		p.api.Set(func(r dwstest.Request) (*http.Response, error) {
			if r.Document == "bad" {
				return dwstest.Failing(500)(r)
			}
			return dwstest.Grant(dwstest.Token(1, r.Exp))
		})
		// The bad document always asks first.
		deadline := time.Now().Add(time.Minute)
		for time.Now().Before(deadline) {
			p.wantFailure("bad", reasonUnavailable)
			if _, _, f := p.get(t.Context(), testClaims("good")); f == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Error("within a minute, no other document got through")
	})
}

func TestBackoffBoundsCallsAndEndsByItself(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(dwstest.Failing(500))
		const requests = 6000
		for i := range requests {
			p.wantFailure(fmt.Sprint("doc", i), reasonUnavailable)
			time.Sleep(100 * time.Millisecond)
		}
		// Ten minutes, with a delay of at most 10 s and at least half of it.
		if got := p.api.Count(); got < 600/10 || got > 600/5+20 {
			t.Errorf("%d mints were tried in ten minutes of outage", got)
		}
		p.api.Set(nil)
		start := time.Now()
		for i := 0; ; i++ {
			if _, _, f := p.get(t.Context(), testClaims(fmt.Sprint("back", i))); f == nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(start); took > maxDelay {
			t.Errorf("it took %s to notice that the API is back", took)
		}
		for i := range 50 {
			p.want(fmt.Sprint("all", i), resultMinted)
		}
	})
}

func TestRetryAfterIsKept(t *testing.T) {
	for name, tc := range map[string]struct {
		value     string
		held, end time.Duration
	}{
		"seconds":  {"120", 119 * time.Second, 121 * time.Second},
		"a year":   {"31536000", 299 * time.Second, 301 * time.Second},
		"huge":     {"18446744073709551615", 299 * time.Second, 301 * time.Second},
		"nonsense": {"soon", 200 * time.Millisecond, maxDelay},
		"negative": {"-5", 200 * time.Millisecond, maxDelay},
	} {
		t.Run(name, func(t *testing.T) {
			withPool(t, nil, func(t *testing.T, p *poolTest) {
				p.api.Set(dwstest.Failing(429, "Retry-After", tc.value))
				p.wantFailure("doc", reasonThrottled)
				p.api.Set(nil)
				start := time.Now()
				for time.Since(start) < tc.held {
					f := p.wantFailure("doc", reasonThrottled)
					if until := clock.Now().Until(f.retryAt); until <= 0 || until > 5*time.Minute {
						t.Fatalf("retry in %s", until)
					}
					p.wantFailure("other", reasonThrottled)
					time.Sleep(100 * time.Millisecond)
				}
				p.wantMints(1)
				time.Sleep(tc.end - tc.held)
				p.want("doc", resultMinted)
			})
		})
	}
}

func TestPermanentRefusalIsRememberedForSeconds(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(dwstest.Failing(404))
		for range 10 {
			p.wantFailure("doc", reasonRefused)
			time.Sleep(100 * time.Millisecond)
		}
		p.wantMints(1)
		time.Sleep(refusalMemory)
		p.wantFailure("doc", reasonRefused)
		p.wantMints(2)
	})
}

func TestRefusalsBySomeStrangersIDsOpenNoBackoff(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(dwstest.Failing(400))
		for i := range 100 {
			p.wantFailure(fmt.Sprint("made-up", i), reasonRefused)
		}
		p.api.Set(nil)
		p.want("real", resultMinted)
	})
}

func TestRetryAfterCountsFromTheAnswer(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Delay = 3 * time.Second
		p.api.Set(dwstest.Failing(429, "Retry-After", "3"))
		if f := p.wantFailure("doc", reasonThrottled); clock.Now().Until(f.retryAt) != 3*time.Second {
			t.Errorf("retry in %s", clock.Now().Until(f.retryAt))
		}
	})
}

func TestRenewalsThatAreHeldBackCostNoRate(t *testing.T) {
	withPool(t, func(s *poolSettings) { s.rate, s.burst = 1, 40 }, func(t *testing.T, p *poolTest) {
		for i := range 20 {
			p.want(fmt.Sprint("doc", i), resultMinted)
		}
		time.Sleep(30 * time.Minute)
		p.api.Set(dwstest.Failing(429, "Retry-After", "300"))
		p.wantFailure("cold", reasonThrottled)
		for i := range 20 {
			p.want(fmt.Sprint("doc", i), resultRenewing)
		}
		p.api.Set(nil)
		time.Sleep(5 * time.Minute)
		p.want("probe", resultMinted) // it is back
	})
}

// A panic in a probe must not keep the probe's place for good.
func TestPanicsInProbesAreNoDeadStop(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(dwstest.Failing(500))
		for i := range 10 {
			p.wantFailure(fmt.Sprint("down", i), reasonUnavailable)
		}
		if !p.minter.Failing("doc", clock.Now()) {
			t.Fatal("no back-off")
		}
		p.api.Set(func(dwstest.Request) (*http.Response, error) { panic("boom") })
		for i := range 10 {
			time.Sleep(2 * maxDelay)
			p.wantFailure(fmt.Sprint("panics", i), reasonUnavailable)
		}
		p.api.Set(nil)
		time.Sleep(2 * maxDelay)
		p.want("doc", resultMinted)
	})
}

// An answer may be too long because what strangers asked for is. That holds up
// nobody else.
func TestLongAnswersHoldUpNobody(t *testing.T) {
	api := &dwstest.API{Answer: func(r dwstest.Request) (*http.Response, error) {
		if strings.HasPrefix(r.Document, "long") {
			return dwstest.Respond(201, strings.Repeat(" ", 70_000))
		}
		return dwstest.Grant(dwstest.Token(1, r.Exp))
	}}
	h := newTestHandler(t, api, oneRoute)
	for i := range 10 {
		r, w := newRequest("GET", fmt.Sprint("/documents/long", i))
		wantStatus(t, h.ServeHTTP(w, r, new(app)), 502, reasonInvalidReply)
	}
	r, w := newRequest("GET", "/documents/doc")
	if err := h.ServeHTTP(w, r, new(app)); err != nil {
		t.Error(err)
	}
}
