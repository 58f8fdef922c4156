package viewersession

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
)

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
