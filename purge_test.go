package viewersession

import (
	"fmt"
	"hash/maphash"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

func TestPurgeOfOneDocument(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		alice := testClaims("a")
		alice.UserID = "alice"
		if _, _, f := p.get(t.Context(), alice); f != nil {
			t.Fatal(f)
		}
		p.want("a", resultMinted)
		kept := p.want("b", resultMinted)
		p.wantMints(3)

		if n := p.purge("a"); n != 2 {
			t.Errorf("%d tokens purged, want those of both users", n)
		}
		p.want("a", resultMinted)
		if _, result, _ := p.get(t.Context(), alice); result != resultMinted {
			t.Errorf("alice got her token by %s after the purge", result)
		}
		if p.want("b", resultHit) != kept {
			t.Error("the other document got another token")
		}
		p.want("a", resultHit)
		p.wantMints(5)
		if n := p.purge("never seen"); n != 0 {
			t.Errorf("%d tokens purged of a document that has none", n)
		}
	})
}

// The API may take ids as the same that differ in case.
func TestPurgeIgnoresCase(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.want("01ABC", resultMinted)
		if n := p.purge("01abc"); n != 1 {
			t.Errorf("%d tokens purged, want 1", n)
		}
		p.want("01ABC", resultMinted)
	})
}

func TestPurgeOfAll(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		for i := range 10 {
			p.want(fmt.Sprint("doc", i), resultMinted)
		}
		if n := p.purge(""); n != 10 {
			t.Errorf("%d tokens purged, want 10", n)
		}
		for i := range 10 {
			p.want(fmt.Sprint("doc", i), resultMinted)
			p.want(fmt.Sprint("doc", i), resultHit)
		}
	})
}

// A mint that began before the purge may bring what the purge was to end. Those
// who waited for it are served; nobody else gets it.
func TestPurgeReachesMintsUnderWay(t *testing.T) {
	for _, all := range []bool{false, true} {
		withPool(t, nil, func(t *testing.T, p *poolTest) {
			p.api.Delay = 2 * time.Second
			var wg sync.WaitGroup
			var before, after *token
			wg.Go(func() { before = p.asked("doc", resultMinted) })
			time.Sleep(time.Second)
			if all {
				p.purge("")
			} else {
				p.purge("doc")
				p.purge("another")
			}
			wg.Go(func() { after = p.asked("doc", resultMinted) })
			wg.Wait()
			if before == after {
				t.Error("a request after the purge got the token of a mint that began before")
			}
			if p.want("doc", resultHit) != after {
				t.Error("the token from before the purge was stored")
			}
			p.wantMints(2)
		})
	}
}

func TestPurgeOfAnotherDocumentLeavesMintsUnderWay(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Delay = 2 * time.Second
		var wg sync.WaitGroup
		wg.Go(func() { p.asked("doc", resultMinted) })
		time.Sleep(time.Second)
		p.purge("another")
		wg.Go(func() { p.asked("doc", resultShared) })
		wg.Wait()
		p.want("doc", resultHit)
		p.wantMints(1)
	})
}

// A renewal under way at the purge must not bring the document back.
func TestPurgeReachesRenewals(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.want("doc", resultMinted)
		time.Sleep(44 * time.Minute)
		p.api.Delay = 2 * time.Second
		p.want("doc", resultRenewing)
		p.purge("doc")
		time.Sleep(3 * time.Second)
		p.want("doc", resultMinted)
		p.wantMints(3)
	})
}

// A token that was purged while a request waited for its successor is not the
// fallback any more.
func TestPurgedTokenIsNoFallback(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.want("doc", resultMinted)
		time.Sleep(50 * time.Minute)
		p.api.Set(dwstest.Hanging)
		var wg sync.WaitGroup
		wg.Go(func() {
			if tok, _, f := p.get(t.Context(), testClaims("doc")); f == nil || f.reason != reasonTimeout {
				t.Errorf("%v, %v: want a timeout", tok, f)
			}
		})
		time.Sleep(time.Second)
		p.purge("doc")
		wg.Wait()
	})
	withPool(t, nil, func(t *testing.T, p *poolTest) { // without the purge, it is
		p.want("doc", resultMinted)
		time.Sleep(50 * time.Minute)
		p.api.Set(dwstest.Hanging)
		p.want("doc", resultStale)
	})
}

func TestPurgeReachesTokensTurnedAway(t *testing.T) {
	c := newTestCache(t, minCacheSize)
	key := longKey("doc", 0)
	c.overflow.put(cachedToken(key))
	if c.get([]byte(key)) == nil {
		t.Fatal("the token is not there")
	}
	if n := c.purge("doc0", clock.Now()); n != 1 || c.get([]byte(key)) != nil {
		t.Errorf("%d tokens purged, want the one", n)
	}
	if c.overflow.bytes != 0 || c.overflow.count.Load() != 0 || c.overflow.order.Len() != 0 {
		t.Errorf("%d bytes and %d tokens are left behind", c.overflow.bytes, c.overflow.order.Len())
	}
}

// A purge is remembered for as long as a mint from before can be under way,
// and not for ever.
func TestPurgesAreForgotten(t *testing.T) {
	var l purgeLog
	now := time.Hour
	const late = 100 // purged when the first period is almost over
	old := cachedToken(longKey("doc", late))
	for i := range 10_000 {
		l.add(fmt.Sprint("doc", i), now+time.Duration(i)*time.Second)
		if i >= late && i < late+int(purgeMemory/time.Second) && !l.purged(old) {
			t.Fatalf("forgotten after %d s", i)
		}
		if n, most := len(l.documents)+len(l.before), 2*int(purgeMemory/time.Second)+2; n > most {
			t.Fatalf("%d purges are remembered, want at most %d", n, most)
		}
	}
}

func TestPurgeAfterTheLastConfig(t *testing.T) {
	var left *pool
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.want("doc", resultMinted)
		left = p.pool
	})
	if n := left.purge(""); n != 0 {
		t.Errorf("%d tokens purged of a pool that has ended", n)
	}
}

func TestDocumentOfKey(t *testing.T) {
	for _, id := range []string{"", "a", "doc", strings.Repeat("x", 127), strings.Repeat("x", 128), strings.Repeat("x", 100_000), "\x05a"} {
		a := testClaims(id)
		a.UserID = "user"
		if got := claims.DocumentOf(string(a.AppendKey(nil))); got != id {
			t.Errorf("%.20q became %.20q", id, got)
		}
	}
}

func TestPurgeThroughTheAdminAPI(t *testing.T) {
	purge := func(method, body string) (*httptest.ResponseRecorder, error) {
		w := httptest.NewRecorder()
		return w, adminAPI{}.Routes()[1].Handler.ServeHTTP(w, httptest.NewRequest(method, "/viewer_session/purge", strings.NewReader(body)))
	}
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.want("a", resultMinted)
		p.want("b", resultMinted)
		p.want("c", resultMinted)
		for _, body := range []string{
			``, `{}`, `null`, `"a"`, `[]`, `a`, `{"document_id": ""}`, `{"document_id": null}`, `{"document_id": 1}`, `{"document_id": ["a"]}`,
			`{"all": false}`, `{"all": null}`, `{"all": "true"}`, `{"all": 1}`, `{"document_id": "a", "all": true}`, `{"document_id": "a", "all": false}`,
			`{"document_id": "", "all": true}`, `{"document_id": "a", "user_id": "b"}`, `{"all": true} {}`, `{"all": true}]`, `{"document_id": "a"`, `document_id=a`,
			`{"all": true, "document_id": null}`, `{"all": null, "document_id": "a"}`, `{"document_id": "a", "document_id": "b"}`, `{"DOCUMENT_ID": "a"}`,
			`{"all": false, "ALL": true}`, `{"All": true}`, `["document_id", "a"]`, `{"document_id": {"all": true}}`,
			`{"document_id": "` + strings.Repeat("a", maxPurgeBytes) + `"}`,
		} {
			_, err := purge("POST", body)
			if apiErr, ok := err.(caddy.APIError); !ok || apiErr.HTTPStatus != http.StatusBadRequest { //nolint:errorlint // what Caddy looks at
				t.Errorf("%.60s: %v, want 400", body, err)
			}
		}
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE"} {
			w, err := purge(method, `{"all": true}`)
			if apiErr, ok := err.(caddy.APIError); !ok || apiErr.HTTPStatus != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "POST" { //nolint:errorlint // as above
				t.Errorf("%s: %v, want 405", method, err)
			}
		}
		p.want("a", resultHit)
		p.want("b", resultHit)

		for _, tc := range []struct {
			body string
			want string
		}{{`{"document_id": "a"}`, `"purged": 1,`}, {` {"all": true} ` + "\n", `"purged": 2,`}, {`{"all": true}`, `"purged": 0,`}} {
			w, err := purge("POST", tc.body)
			if err != nil || !strings.Contains(w.Body.String(), tc.want) || !strings.Contains(w.Body.String(), "stay valid until they expire") {
				t.Errorf("%s: %v, %s", tc.body, err, w.Body)
			}
			synctest.Wait()
		}
		p.want("a", resultMinted)
		p.want("b", resultMinted)
		p.wantMints(5)
	})
}

// A token that is being stored, and has been looked at before the purge, is
// purged as well.
func TestPurgeWaitsForThoseWhoStore(t *testing.T) {
	c := newTestCache(t, minCacheSize)
	tok := cachedToken(string(withKeyID(new(mint.KeyID), string((&claims.Claims{Request: dws.Request{DocumentID: "doc"}}).AppendKey(nil)))))
	c.storing.RLock() // as put does
	if c.purges.purged(tok) {
		t.Fatal("it has been purged before")
	}
	done := make(chan int)
	go func() { done <- c.purge("doc", clock.Now()) }()
	for c.storing.TryRLock() { // until the purge waits
		c.storing.RUnlock()
		select {
		case <-done:
			t.Fatal("the purge does not wait")
		default:
			runtime.Gosched()
		}
	}
	c.main.Set(maphash.String(c.seed, tok.key()), tok, tok.cost())
	c.main.Wait()
	c.storing.RUnlock()
	if n := <-done; n != 1 || c.get([]byte(tok.key())) != nil {
		t.Errorf("%d tokens were purged", n)
	}
}

// What nobody could have got any more does not count.
func TestPurgeDoesNotCountExpiredTokens(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(func(dwstest.Request) (*http.Response, error) {
			return dwstest.Grant(dwstest.Token(p.api.Count(), time.Now().Unix()+90))
		})
		p.want("doc", resultMinted)
		time.Sleep(time.Minute)
		p.want("other", resultMinted)
		time.Sleep(40 * time.Second) // doc has expired, and has not been swept
		if n, _ := p.cache.size(); n != 2 {
			t.Fatalf("%d tokens are cached, want 2", n)
		}
		if n := p.purge(""); n != 1 {
			t.Errorf("%d tokens were purged, want 1", n)
		}
		if n, _ := p.cache.size(); n != 0 {
			t.Errorf("%d tokens are left", n)
		}
	})
}
