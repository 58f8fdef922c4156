package viewersession

import (
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

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
