package viewersession

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

// The outer instance takes the header off, and the inner one knows of it.
func TestRejectedTokenOfTwoInstances(t *testing.T) {
	api := new(dwstest.API)
	outer, inner := newTestHandler(t, api, sessionRoutes), newTestHandler(t, api, sessionRoutes)
	fetch := func(rejected string) string {
		t.Helper()
		next := appAnswering(204)
		r, w := newRequest("GET", "/documents/doc1/session", rejectedHeader, rejected)
		err := outer.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			return inner.ServeHTTP(w, r, next)
		}))
		if len(next.header) != 0 {
			t.Errorf("the app saw %v", next.header)
		}
		return wantSession(t, w, err)
	}
	first := fetch("")
	if fetch(first) == first {
		t.Error("the rejected token came again")
	}
}

func unsigned(jwt string) string { return jwt[:strings.LastIndexByte(jwt, '.')] }

func TestRejectedTokenIsReplaced(t *testing.T) {
	for name, form := range map[string]func(string) string{"whole": func(jwt string) string { return jwt }, "unsigned": unsigned} {
		t.Run(name, func(t *testing.T) {
			withPool(t, nil, func(t *testing.T, p *poolTest) {
				first := p.want("doc", resultMinted)
				second, result, f := p.replace(t.Context(), testClaims("doc"), form(first.jwt()))
				if f != nil || result != resultMinted || second.jwt() == first.jwt() {
					t.Fatalf("%v, %s", f, result)
				}
				if p.want("doc", resultHit) != second {
					t.Error("the new token did not replace the old one")
				}
				// Who comes late with the old one gets the new one.
				if tok, result, f := p.replace(t.Context(), testClaims("doc"), form(first.jwt())); f != nil || result != resultHit || tok != second {
					t.Errorf("%v, %s", f, result)
				}
				p.wantMints(2)
			})
		})
	}
}

func TestOnlyTheVeryTokenIsReplaced(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		first := p.want("doc", resultMinted)
		other := p.want("other", resultMinted)
		for _, rejected := range []string{
			"", "x", ".", other.jwt(), unsigned(other.jwt()), first.jwt() + "x", first.jwt()[:len(first.jwt())-1], unsigned(first.jwt()) + ".", "." + first.jwt(),
			unsigned(unsigned(first.jwt())), strings.ToUpper(first.jwt()), first.jwt() + ", " + first.jwt(),
		} {
			if tok, result, f := p.replace(t.Context(), testClaims("doc"), rejected); f != nil || result != resultHit || tok != first {
				t.Errorf("%.40q: %v, %s", rejected, f, result)
			}
		}
		if tok, result, f := p.replace(t.Context(), testClaims("cold"), first.jwt()); f != nil || result != resultMinted || tok == first {
			t.Errorf("%v, %s", f, result)
		}
		p.wantMints(3)
	})
}

func TestRejectedTokensAreReplacedOnceInAWhile(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		current := p.want("doc", resultMinted)
		reject := func() (result, *failure) {
			tok, result, f := p.replace(t.Context(), testClaims("doc"), current.jwt())
			if f == nil {
				current = tok
			}
			return result, f
		}
		if _, f := reject(); f != nil {
			t.Fatal(f)
		}
		for range 4 {
			time.Sleep(time.Second)
			_, f := reject()
			if f == nil || f.reason != reasonTooSoon || f.reason.status() != 503 || clock.Now().Until(f.retryAt) <= 0 || clock.Now().Until(f.retryAt) > replacementRest {
				t.Fatalf("%v, retry in %s", f, clock.Now().Until(f.retryAt))
			}
			p.want("doc", resultHit) // nobody else is bothered
		}
		p.wantMints(2)
		time.Sleep(time.Second)
		if result, f := reject(); f != nil || result != resultMinted {
			t.Errorf("%v, %s", f, result)
		}
		p.wantMints(3)
		// Another key is not concerned.
		other := p.want("other", resultMinted)
		if _, _, f := p.replace(t.Context(), testClaims("other"), other.jwt()); f != nil {
			t.Error(f)
		}
	})
}

func TestManyBrowsersRejectAtOnce(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		rejected := p.want("doc", resultMinted)
		p.api.Delay = time.Second
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if tok, _, f := p.replace(t.Context(), testClaims("doc"), rejected.jwt()); f != nil || tok == rejected {
					t.Errorf("%v, the rejected one: %v", f, tok == rejected)
				}
			})
		}
		wg.Go(func() { p.asked("doc", resultHit) }) // pages go on with it meanwhile
		wg.Wait()
		p.wantMints(2)
	})
}

// The same when the key has been rotated meanwhile: the previous key's token is
// the fallback for everybody else, but not for whom it was rejected.
func TestRejectedTokenOfAPreviousKey(t *testing.T) {
	withRotatedKey(t, func(t *testing.T, p *poolTest, first *token) {
		p.api.Set(dwstest.Failing(500))
		if tok, result, f := p.replace(t.Context(), testClaims("doc"), first.jwt()); f == nil || f.reason != reasonUnavailable {
			t.Fatalf("%v, %s, %v", tok, result, f)
		}
		p.want("doc", resultStale)
		time.Sleep(2 * time.Second)
		if _, _, f := p.replace(t.Context(), testClaims("doc"), first.jwt()); f == nil || f.reason != reasonTooSoon {
			t.Fatalf("%v", f)
		}
		p.api.Set(nil)
		time.Sleep(4 * time.Second)
		second, _, f := p.replace(t.Context(), testClaims("doc"), first.jwt())
		if f != nil || second == first {
			t.Fatalf("%v", f)
		}
		if p.want("doc", resultHit) != second {
			t.Error("the new token is not used")
		}
		if _, _, f := p.replace(t.Context(), testClaims("doc"), second.jwt()); f == nil || f.reason != reasonTooSoon {
			t.Fatalf("%v", f)
		}
	})
}

// If no other can be minted, the browser is told why, and the token stays for
// those who can use it.
func TestRejectedTokenStaysWhenNoOtherCanBeMinted(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		first := p.want("doc", resultMinted)
		p.api.Set(dwstest.Failing(500))
		if _, _, f := p.replace(t.Context(), testClaims("doc"), first.jwt()); f == nil || f.reason != reasonUnavailable {
			t.Fatalf("%v", f)
		}
		if p.want("doc", resultHit) != first {
			t.Error("the token is gone")
		}
		p.api.Set(nil)
		time.Sleep(2 * time.Second)
		if _, _, f := p.replace(t.Context(), testClaims("doc"), first.jwt()); f == nil || f.reason != reasonTooSoon {
			t.Fatalf("%v", f)
		}
		time.Sleep(4 * time.Second)
		if tok, _, f := p.replace(t.Context(), testClaims("doc"), first.jwt()); f != nil || tok == first {
			t.Fatalf("%v", f)
		}
	})
}

// A rejection that joins the renewal of the same token gets what that brings.
func TestRejectionJoinsARenewal(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		first := p.want("doc", resultMinted)
		time.Sleep(30 * time.Minute)
		p.api.Delay = time.Second
		p.asked("doc", resultRenewing)
		synctest.Wait()
		tok, result, f := p.replace(t.Context(), testClaims("doc"), first.jwt())
		if f != nil || result != resultShared || tok == first {
			t.Fatalf("%v, %s", f, result)
		}
		p.wantMints(2)
	})
}

// Nobody gets a refusal that was meant for a browser whose token was rejected.
func TestExpiredTokenIsNoRejection(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		first := p.want("doc", resultMinted)
		first.replaceAfter.Store(1 << 62)
		time.Sleep(time.Hour)
		if tok, result, f := p.replace(t.Context(), testClaims("doc"), first.jwt()); f != nil || result != resultMinted || tok == first {
			t.Fatalf("%v, %s", f, result)
		}
		if _, _, f := p.mintOnce(p.flight(first), testClaims("doc"), flightOptions{rejected: first}); f != nil {
			t.Errorf("%v", f)
		}
	})
}

func TestRejectedHeaderReachesThePool(t *testing.T) {
	api := new(dwstest.API)
	h := newTestHandler(t, api, sessionRoutes)
	fetch := func(rejected string) (*httptest.ResponseRecorder, error) {
		r, w := newRequest("GET", "/documents/doc1/session", rejectedHeader, rejected)
		return w, h.ServeHTTP(w, r, appAnswering(204))
	}
	w, err := fetch("")
	first := wantSession(t, w, err)
	w, err = fetch("another.to.ken")
	if wantSession(t, w, err) != first {
		t.Error("another token was replaced")
	}
	w, err = fetch(first)
	second := wantSession(t, w, err)
	if first == second {
		t.Error("the rejected token came again")
	}
	w, err = fetch(second)
	wantStatus(t, err, 503, reasonTooSoon)
	if w.Header().Get("Retry-After") != "5" {
		t.Errorf("Retry-After %q", w.Header().Get("Retry-After"))
	}
	if api.Count() != 2 {
		t.Errorf("%d mints, want 2", api.Count())
	}
	// The app that says no has the last word.
	r, w := newRequest("GET", "/documents/doc1/session", rejectedHeader, second)
	if err := h.ServeHTTP(w, r, appAnswering(403)); err != nil || w.Code != 403 || api.Count() != 2 {
		t.Errorf("%v, %d, %d mints", err, w.Code, api.Count())
	}
}

// A flight that knows of no rejection may bring the rejected token itself.
func TestRejectionOutlivesAFlightThatDoesNotKnow(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		first := p.want("doc", resultMinted)
		release := make(chan struct{})
		p.flights.start(first.key()[len(mint.KeyID{}):], "another", p.minter.NewWaiters, func(f *flight) {
			<-release
			f.token = first
		})
		var wg sync.WaitGroup
		wg.Go(func() {
			if tok, _, f := p.replace(t.Context(), testClaims("doc"), first.jwt()); f != nil || tok == first {
				t.Errorf("%v, the rejected token: %t", f, tok == first)
			}
		})
		synctest.Wait()
		close(release)
		wg.Wait()
	})
}
