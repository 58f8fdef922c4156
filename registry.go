package viewersession

import (
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

// pools keeps what must survive a reload: tokens, back-off, the rate limit and
// mints that are under way. The new config's handlers are provisioned before
// the old one's are cleaned up, so a pool that both use never ends in between.
var pools = caddy.NewUsagePool()

// joinPool adds a member to the pool with these settings and makes the pool if
// there is none.
func joinPool(settings poolSettings, endpoint *url.URL, m *member, now func() clock.Time) (*pool, error) {
	value, _, err := pools.LoadOrNew(settings, func() (caddy.Destructor, error) {
		p, err := newPool(settings, endpoint, m, now)
		if err == nil {
			register(p)
		}
		return p, err
	})
	if err != nil {
		return nil, err
	}
	p := value.(*pool)
	p.members.add(m)
	return p, nil
}

// leave takes a member out. The pool ends with the last one.
func (p *pool) leave(m *member) error {
	p.members.remove(m)
	_, err := pools.Delete(p.settings)
	return err
}

// Destruct implements caddy.Destructor. Mints under way go on for the requests
// that wait for them; each ends by its timeout.
func (p *pool) Destruct() error {
	p.cache.close()
	retire(p, time.Now())
	return nil
}

// registry knows all pools, and what those counted that no config uses any more: a
// counter must not go back when a reload changes a pool's settings. It has one
// lock, so that no pool is missed or counted twice while it ends.
var registry struct {
	sync.Mutex
	pools   []*pool
	retired []retiredPool
	total   map[string]*counters // of pools that ended long ago, by endpoint
}

// retiredPool is a pool that no config uses any more. Requests that began before
// still count for a while.
type retiredPool struct {
	endpoint string
	*counters
	at time.Time
}

const retiredPoolGrace = 2 * mint.MaxTimeout

// register adds a pool.
func register(p *pool) {
	registry.Lock()
	defer registry.Unlock()
	registry.pools = append(registry.pools, p)
}

// retire takes out a pool, and keeps what it counted.
func retire(p *pool, now time.Time) {
	registry.Lock()
	defer registry.Unlock()
	registry.pools = slices.DeleteFunc(registry.pools, func(other *pool) bool { return other == p })
	registry.retired = slices.DeleteFunc(registry.retired, func(retired retiredPool) bool {
		if now.Sub(retired.at) < retiredPoolGrace {
			return false
		}
		if registry.total == nil {
			registry.total = make(map[string]*counters)
		}
		if registry.total[retired.endpoint] == nil {
			registry.total[retired.endpoint] = new(counters)
		}
		registry.total[retired.endpoint].add(retired.counters)
		return true
	})
	registry.retired = append(registry.retired, retiredPool{p.endpoint.Host, &p.stats.counters, now})
}

// allPools returns the pools that are in use, the oldest first.
func allPools() []*pool {
	registry.Lock()
	defer registry.Unlock()
	return slices.Clone(registry.pools)
}

// endpointSum is what all pools with one endpoint have counted.
type endpointSum struct {
	counters
	backoffUntil              float64 // Unix seconds; 0 for none
	cachedTokens, cachedBytes int64
}

func sumByEndpoint() map[string]*endpointSum {
	sums := make(map[string]*endpointSum)
	of := func(endpoint string) *endpointSum {
		if sums[endpoint] == nil {
			sums[endpoint] = new(endpointSum)
		}
		return sums[endpoint]
	}
	registry.Lock()
	defer registry.Unlock()
	for endpoint, total := range registry.total {
		of(endpoint).add(total)
	}
	for _, retired := range registry.retired {
		of(retired.endpoint).add(retired.counters)
	}
	for _, p := range registry.pools {
		sum := of(p.endpoint.Host)
		sum.add(&p.stats.counters)
		tokens, bytes := p.cache.size()
		sum.cachedTokens += tokens
		sum.cachedBytes += bytes
		if until, _ := p.minter.HeldBack(p.now()); !until.IsZero() {
			sum.backoffUntil = max(sum.backoffUntil, float64(until.Wall().UnixNano())/1e9)
		}
	}
	return sums
}
