package viewersession

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

var endpoints atomic.Int64

// newEndpoint is an endpoint of the test's own, so that its metrics are as well.
func newEndpoint() *url.URL {
	return &url.URL{Scheme: "https", Host: fmt.Sprintf("api%d.example.com", endpoints.Add(1)), Path: "/viewer/sessions"}
}

var testEndpoint = &url.URL{Scheme: "https", Host: "api.example.com", Path: "/viewer/sessions"}

// poolTest is a pool with one member, in a bubble with a fake clock.
type poolTest struct {
	*pool
	t      *testing.T
	api    *dwstest.API
	member *member
}

func testSettings(t *testing.T) poolSettings {
	return poolSettings{
		endpoint: testEndpoint.String() + "?" + t.Name(), apiKey: defaultAPIKey, timeout: defaultTimeout,
		rate: defaultMintRate, burst: defaultMintBurst, cacheSize: minCacheSize,
	}
}

func withPool(t *testing.T, change func(*poolSettings), test func(*testing.T, *poolTest)) {
	t.Helper()
	withPoolAt(t, clock.Now, change, test)
}

// withPoolAt is withPool for a gateway with clocks of its own.
func withPoolAt(t *testing.T, now func() clock.Time, change func(*poolSettings), test func(*testing.T, *poolTest)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		settings := testSettings(t)
		if change != nil {
			change(&settings)
		}
		api := new(dwstest.API)
		member := newMember(api, nil, zap.NewNop(), "pdf_live_test")
		p, err := joinPool(settings, newEndpoint(), member, now)
		if err != nil {
			t.Fatal(err)
		}
		pt := &poolTest{pool: p, t: t, api: api, member: member}
		defer func() {
			if err := p.leave(pt.member); err != nil {
				t.Error(err)
			}
			synctest.Wait()
		}()
		test(t, pt)
	})
}

func testClaims(document string) *claims.Claims {
	return &claims.Claims{Request: dws.Request{DocumentID: document, Permissions: []string{"read"}, TTL: time.Hour}, MinRemaining: 15 * time.Minute}
}

// asked gets a token for document and checks where it came from. It may run in
// a goroutine of its own.
func (p *poolTest) asked(document string, want result) *token {
	p.t.Helper()
	tok, got, f := p.get(p.t.Context(), testClaims(document))
	if f != nil {
		p.t.Errorf("%s: no token: %v", document, f)
	} else if got != want {
		p.t.Errorf("%s: result %s, want %s", document, got, want)
	}
	return tok
}

// want is asked, ends the test if it is otherwise, and waits for renewals.
func (p *poolTest) want(document string, want result) *token {
	p.t.Helper()
	tok := p.asked(document, want)
	if p.t.Failed() {
		p.t.FailNow()
	}
	synctest.Wait()
	return tok
}

// wantFailure gets none, for this reason.
func (p *poolTest) wantFailure(document string, want reason) *failure {
	p.t.Helper()
	tok, _, f := p.get(p.t.Context(), testClaims(document))
	if f == nil {
		p.t.Fatalf("%s: a token that expires at %d, want failure %s", document, tok.exp, want)
	}
	if f.reason != want {
		p.t.Fatalf("%s: failure %s (%v), want %s", document, f.reason, f, want)
	}
	synctest.Wait()
	return f
}

func (p *poolTest) wantMints(want int) {
	p.t.Helper()
	if got := p.api.Count(); got != want {
		p.t.Fatalf("%d mints, want %d", got, want)
	}
}

// parseTestHandler parses a viewer_session directive.
func parseTestHandler(text string) (*Handler, error) {
	h := new(Handler)
	return h, h.UnmarshalCaddyfile(caddyfile.NewTestDispenser(text))
}

// How long the minter's memory is; see internal/mint.
const refusalMemory, maxDelay = 5 * time.Second, 10 * time.Second

// flight is a flight for the token's key that somebody waits for.
func (p *poolTest) flight(t *token) *flight {
	f := &flight{name: nameOf(t.key()), waiters: p.minter.NewWaiters()}
	f.waiters.Join("client")
	return f
}

// turnsLeft uses up mint_rate, and returns how many turns were left.
func (p *poolTest) turnsLeft() (left int) {
	p.t.Helper()
	for ; ; left++ {
		_, _, f := p.get(p.t.Context(), testClaims(fmt.Sprint("turn", left)))
		if f == nil {
			continue
		}
		if f.reason != reasonRateLimited {
			p.t.Fatal(f)
		}
		return left
	}
}

// useBurst mints as much at once as the rate permits.
func (p *pool) useBurst(ctx context.Context) {
	var wg sync.WaitGroup
	for i := range p.settings.burst {
		wg.Go(func() { _, _, _ = p.get(ctx, testClaims(fmt.Sprint("burst", i))) })
	}
	wg.Wait()
}

// newTestToken returns a token that lives until exp, by clocks that agree.
func newTestToken(key, jwt string, exp, askedExp int64, now time.Time) *token {
	until := func(exp int64) time.Duration { return time.Unix(exp, 0).Sub(now) }
	return newToken(key, jwt, exp, dws.Lifetime{Minted: clock.At(now), Life: until(exp), Asked: until(askedExp)})
}
