package viewersession

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

// clocks are those of a gateway and of the API, which may differ. The API's is
// the bubble's own; the gateway's can be set, and stands still while suspended.
type clocks struct {
	ahead   atomic.Int64 // of the gateway's wall clock
	stopped atomic.Int64 // for how long the gateway's monotonic clock stood still
}

func (c *clocks) now() clock.Time {
	now := time.Now()
	return clock.Of(now.Add(time.Duration(c.ahead.Load())), clock.At(now).Mono()-time.Duration(c.stopped.Load()))
}

func (c *clocks) step(d time.Duration) { c.ahead.Add(int64(d)) }

func (c *clocks) suspend(d time.Duration) {
	time.Sleep(d)
	c.stopped.Add(int64(d))
}

// withClocks gives the pool clocks of its own, and an API that has a clock.
func withClocks(t *testing.T, ahead time.Duration, test func(t *testing.T, p *poolTest, c *clocks)) {
	t.Helper()
	c := new(clocks)
	c.step(ahead)
	withPoolAt(t, c.now, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(clockedAPI(p))
		test(t, p, c)
	})
}

// clockedAPI refuses an exp that is past, or more than a day ahead, and tells its
// time.
func clockedAPI(p *poolTest) func(dwstest.Request) (*http.Response, error) {
	return func(r dwstest.Request) (*http.Response, error) {
		now := time.Now()
		resp, err := dwstest.Grant(dwstest.Token(p.api.Count(), r.Exp))
		if r.Exp <= now.Unix() || r.Exp > now.Add(24*time.Hour).Unix() {
			resp, err = dwstest.Respond(422, `{"details":"exp"}`)
		}
		resp.Header.Set("Date", now.UTC().Format(http.TimeFormat))
		return resp, err
	}
}

// wantAlive gets a token that the API accepts, and good for at least this long.
func (p *poolTest) wantAlive(document string, least time.Duration) (*token, result) {
	p.t.Helper()
	tok, result, f := p.get(p.t.Context(), testClaims(document))
	if f != nil {
		p.t.Fatal(f)
	}
	if left := time.Until(time.Unix(tok.exp, 0)); left < least {
		p.t.Errorf("%s: a token that ends in %s, want at least %s", result, left, least)
	}
	synctest.Wait()
	return tok, result
}

var clockOffsets = []time.Duration{0, 50 * time.Second, -50 * time.Second, 10 * time.Minute, -10 * time.Minute, 2 * time.Hour, -2 * time.Hour}

// Whatever a gateway's clock says, no token is handed out past its end, and
// min_remaining is kept as long as tokens can be minted.
func TestTokensOfAGatewayWithAWrongClock(t *testing.T) {
	for _, ahead := range clockOffsets {
		t.Run(ahead.String(), func(t *testing.T) {
			withClocks(t, ahead, func(t *testing.T, p *poolTest, c *clocks) {
				core, logs := observer.New(zap.WarnLevel)
				p.member.logger = zap.New(core)
				p.wantAlive("first", 40*time.Minute) // it learns the API's time
				mints := p.api.Count()
				if most := 1 + map[bool]int{true: 1}[ahead < -time.Hour]; mints != most {
					t.Errorf("%d requests for the first token, want %d", mints, most)
				}
				p.wantAlive("doc", 59*time.Minute)
				if got := p.api.Asked[len(p.api.Asked)-1].Exp - time.Now().Unix(); ahead.Abs() > mint.MaxClockOffset && (got < 3598 || got > 3601) {
					t.Errorf("asked for a token that ends in %d s by the API's clock", got)
				}
				for range 24 * 12 { // a day in steps of five minutes
					time.Sleep(5 * time.Minute)
					p.wantAlive("doc", 14*time.Minute)
				}
				if got := p.api.Count() - mints; got > 24*4 {
					t.Errorf("%d mints in a day", got)
				}
				told := len(logs.FilterMessageSnippet("clock differs").All())
				if most := 25; ahead.Abs() <= mint.MaxClockOffset && told > 0 || ahead.Abs() > mint.MaxClockOffset && (told == 0 || told > most) {
					t.Errorf("told %d times", told)
				}

				// The API is down: the token is used to its end, and not beyond.
				p.api.Set(dwstest.Failing(500))
				for range 70 {
					time.Sleep(time.Minute)
					if tok, _, f := p.get(t.Context(), testClaims("doc")); f == nil && time.Now().Unix() >= tok.exp {
						t.Fatalf("a token that ended %s ago", time.Since(time.Unix(tok.exp, 0)))
					}
				}
				p.wantFailure("doc", reasonUnavailable)
			})
		})
	}
}

// A clock that is set, in either direction, and a suspend may cost a mint, but
// never hand out an ended token.
func TestTokensWhileTheClockIsSet(t *testing.T) {
	for _, before := range clockOffsets {
		for _, step := range []time.Duration{50 * time.Second, -50 * time.Second, 10 * time.Minute, -10 * time.Minute, 2 * time.Hour, -2 * time.Hour} {
			t.Run(fmt.Sprint(before, " then ", step), func(t *testing.T) {
				withClocks(t, before, func(t *testing.T, p *poolTest, c *clocks) {
					p.wantAlive("doc", 40*time.Minute)
					time.Sleep(10 * time.Minute)
					c.step(step)
					for range 20 {
						p.wantAlive("doc", 10*time.Minute)
						p.wantAlive(fmt.Sprint(time.Now().UnixNano()), 49*time.Minute)
						time.Sleep(5 * time.Minute)
					}
					// Back again, with the API down.
					p.api.Set(dwstest.Failing(500))
					c.step(-step)
					for range 120 {
						time.Sleep(time.Minute)
						if tok, _, f := p.get(t.Context(), testClaims("doc")); f == nil && time.Now().Unix() >= tok.exp {
							t.Fatalf("a token that ended %s ago", time.Since(time.Unix(tok.exp, 0)))
						}
					}
				})
			})
		}
	}
}

func TestTokensAfterASuspend(t *testing.T) {
	for _, ahead := range clockOffsets {
		for _, asleep := range []time.Duration{50 * time.Minute, 8 * time.Hour} {
			withClocks(t, ahead, func(t *testing.T, p *poolTest, c *clocks) {
				first, _ := p.wantAlive("doc", 40*time.Minute)
				c.suspend(asleep)
				if again, _ := p.wantAlive("doc", 14*time.Minute); again == first {
					t.Errorf("ahead %s, asleep %s: the same token", ahead, asleep)
				}
				c.suspend(asleep)
				p.wantAlive("new", 14*time.Minute)
			})
		}
	}
}

// A suspended machine and a clock that is set lead to no wait longer than the
// rule says.
func TestWaitsDoNotOutlastTheirRule(t *testing.T) {
	t.Run("a rejected token", func(t *testing.T) {
		withClocks(t, 0, func(t *testing.T, p *poolTest, c *clocks) {
			first, _ := p.wantAlive("doc", 0)
			second, _, f := p.replace(t.Context(), testClaims("doc"), first.jwt())
			if f != nil {
				t.Fatal(f)
			}
			for _, change := range []func(){func() { c.step(-2 * time.Hour) }, func() { c.step(4 * time.Hour) }, func() { c.suspend(8 * time.Hour) }} {
				change()
				if _, _, f := p.replace(t.Context(), testClaims("doc"), second.jwt()); f != nil && f.retryAfter(c.now()) > 5 {
					t.Errorf("retry after %d s", f.retryAfter(c.now()))
				}
			}
			time.Sleep(replacementRest)
			cached, _ := p.wantAlive("doc", 0)
			time.Sleep(replacementRest)
			if _, _, f := p.replace(t.Context(), testClaims("doc"), cached.jwt()); f != nil {
				t.Errorf("after the rest: %v", f)
			}
		})
	})
	t.Run("throttling", func(t *testing.T) {
		for _, change := range []func(c *clocks){func(c *clocks) { c.step(-2 * time.Hour) }, func(*clocks) {}, func(c *clocks) { c.suspend(time.Hour) }} {
			withClocks(t, 0, func(t *testing.T, p *poolTest, c *clocks) {
				p.api.Set(dwstest.Failing(429, "Retry-After", "120"))
				p.wantFailure("doc", reasonThrottled)
				change(c)
				if f := p.heldNow(); f != nil && f.retryAfter(c.now()) > 120 {
					t.Errorf("retry after %d s", f.retryAfter(c.now()))
				}
				p.api.Set(clockedAPI(p))
				time.Sleep(2*time.Minute + maxDelay)
				p.wantAlive("doc", 0)
			})
		}
		// A suspend is time that has passed.
		withClocks(t, 0, func(t *testing.T, p *poolTest, c *clocks) {
			p.api.Set(dwstest.Failing(429, "Retry-After", "120"))
			p.wantFailure("doc", reasonThrottled)
			p.api.Set(clockedAPI(p))
			c.suspend(time.Hour)
			p.wantAlive("doc", 0)
		})
	})
}

func (p *poolTest) heldNow() *failure {
	_, cause := p.minter.HeldBack(p.now())
	if cause == nil {
		return nil
	}
	return failureOf(cause)
}

// Two gateways whose clocks differ share tokens, and neither hands one out past
// its end.
func TestFleetWithDifferentClocks(t *testing.T) {
	for _, ahead := range clockOffsets {
		for _, met := range []bool{true, false} { // whether the second has heard of the API
			t.Run(fmt.Sprint(ahead, met), func(t *testing.T) {
				c := new(clocks)
				c.step(ahead)
				withFleet(t, 2, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
					fleet[0].api.Set(clockedAPI(fleet[0]))
					if met {
						fleet[1].wantAlive("other", 0)
					}
					for i := range 12 {
						fleet[0].wantAlive(fmt.Sprint("doc", i), 59*time.Minute)
					}
					for i := range 12 {
						time.Sleep(5 * time.Minute)
						tok, _, f := fleet[1].get(t.Context(), testClaims(fmt.Sprint("doc", i)))
						if f != nil || time.Now().Unix() >= tok.exp {
							t.Fatalf("after %d minutes: %v, a token that ended %s ago", 5*(i+1), f, time.Since(time.Unix(tok.exp, 0)))
						}
						if i < 8 && tok.life > time.Hour+time.Second {
							t.Errorf("it is taken to live for %s", tok.life)
						}
					}
					// With the API down, what the second has is used to its end.
					fleet[1].api.Set(dwstest.Failing(500))
					for range 70 {
						time.Sleep(time.Minute)
						for i := range 12 {
							if tok, _, f := fleet[1].get(t.Context(), testClaims(fmt.Sprint("doc", i))); f == nil && time.Now().Unix() >= tok.exp {
								t.Fatalf("a token that ended %s ago", time.Since(time.Unix(tok.exp, 0)))
							}
						}
					}
				}, clock.Now, c.now)
			})
		}
	}
}

// Entries hold the API's time, whatever clock the gateway has that wrote them.
func TestStoredTokensHoldTheAPIsTime(t *testing.T) {
	for _, ahead := range []time.Duration{10 * time.Minute, -2 * time.Hour} {
		c := new(clocks)
		c.step(ahead)
		withFleet(t, 1, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
			p := fleet[0]
			p.api.Set(clockedAPI(p))
			p.wantAlive("first", 0)
			time.Sleep(time.Second)
			minted := time.Now()
			p.wantAlive("doc", 0)
			key := p.keys.cacheKey(string(testClaims("doc").AppendKey(nil)))
			var entry storedToken
			if err := json.Unmarshal(store.entries[p.shared.name(key)].data, &entry); err != nil {
				t.Fatal(err)
			}
			if off := time.Unix(0, entry.Minted).Sub(minted); off.Abs() > 2*time.Second {
				t.Errorf("%s ahead: minted is off by %s", ahead, off)
			}
			if off := time.Unix(entry.AskedExp, 0).Sub(minted.Add(time.Hour)); off.Abs() > 2*time.Second {
				t.Errorf("%s ahead: asked_exp is off by %s", ahead, off)
			}
		}, c.now)
	}
}

// A refusal for another reason than exp is not asked about again and again.
func TestRefusalsAreRepeatedOnceForTheClock(t *testing.T) {
	withClocks(t, -2*time.Hour, func(t *testing.T, p *poolTest, _ *clocks) {
		p.api.Set(func(dwstest.Request) (*http.Response, error) {
			resp, err := dwstest.Respond(422, `{}`)
			resp.Header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
			return resp, err
		})
		p.wantFailure("doc", reasonRefused)
		p.wantMints(3) // once more by the API's clock, and once in the documented way
		p.wantFailure("doc2", reasonRefused)
		p.wantMints(5) // its clock is known now
	})
}

// The API's machine grants less than the gateway, whose clock is ahead, asks
// for; by its clock the token has ended before it came.
func TestTokenThatHasEndedByAWrongClock(t *testing.T) {
	withClocks(t, 2*time.Hour, func(t *testing.T, p *poolTest, _ *clocks) {
		answer := clockedAPI(p)
		p.api.Set(func(r dwstest.Request) (*http.Response, error) {
			r.Exp = min(r.Exp, time.Now().Add(30*time.Minute).Unix())
			return answer(r)
		})
		p.wantAlive("doc", 29*time.Minute)
		p.wantMints(2)
	})
}

// A store that does not say how long it keeps an entry leaves it to the clocks: a
// token that has ended during a suspend has ended.
func TestStoredTokenAfterASuspend(t *testing.T) {
	for _, ahead := range clockOffsets {
		for _, step := range []time.Duration{0, 2 * time.Hour, -2 * time.Hour} {
			c := new(clocks)
			c.step(ahead)
			withFleet(t, 1, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
				p := fleet[0]
				p.api.Set(clockedAPI(p))
				p.wantAlive("other", 0) // it knows the API's time
				key := p.keys.cacheKey(string(testClaims("doc").AppendKey(nil)))
				exp := time.Now().Add(time.Hour).Unix()
				entry, err := json.Marshal(storedToken{JWT: dwstest.Token(1, exp), Minted: time.Now().UnixNano(), AskedExp: exp})
				if err != nil {
					t.Fatal(err)
				}
				c.step(step)
				c.suspend(8 * time.Hour)
				if tok, err := p.shared.read(Acquired{Entry: entry}, string(key), &testClaims("doc").Request, p.now()); err == nil && tok.freshness(p.now(), 0) != expired {
					t.Errorf("%s ahead, then set by %s: a token that ended %s ago", ahead, step, time.Since(time.Unix(exp, 0)))
				}
			}, c.now)
		}
	}
}

// A token that ends early is used if no better one can be minted.
func TestEarlyTokenIsKeptIfTheRepeatFails(t *testing.T) {
	withClocks(t, -50*time.Minute, func(t *testing.T, p *poolTest, c *clocks) {
		answer := clockedAPI(p)
		p.api.Set(func(r dwstest.Request) (*http.Response, error) {
			if p.api.Count() > 1 {
				return dwstest.Failing(503)(r)
			}
			return answer(r)
		})
		if tok, _ := p.wantAlive("doc", 9*time.Minute); tok == nil || p.api.Count() != 2 {
			t.Errorf("%d requests", p.api.Count())
		}
	})
}
