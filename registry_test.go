package viewersession

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

// A pool that ends takes nothing of what was counted with it, at no moment.
func TestCountersOutliveTheirPool(t *testing.T) {
	endpoint := newEndpoint()
	before := gather(t, endpoint.Host)
	stop := make(chan struct{})
	var scraping sync.WaitGroup
	scraping.Go(func() { // no scrape may see a counter go back
		last := 0.0
		for {
			select {
			case <-stop:
				return
			default:
			}
			sum := sumByEndpoint()[endpoint.Host]
			if sum == nil {
				continue
			}
			now := float64(sum.mints[0].Load())
			if now < last {
				t.Errorf("mints_total went from %v to %v", last, now)
				return
			}
			last = now
		}
	})
	for i := range 20 {
		h, err := parseTestHandler(oneRoute)
		if err != nil {
			t.Error(err)
			break
		}
		h.member = newMember(new(dwstest.API), nil, zap.NewNop(), dwstest.Key)
		if h.pool, err = joinPool(testSettings(t), endpoint, h.member, clock.Now); err != nil {
			t.Error(err)
			break
		}
		r, w := newRequest("GET", fmt.Sprint("/documents/doc", i))
		if err := h.ServeHTTP(w, r, new(app)); err != nil {
			t.Error(err)
		}
		if err := h.pool.leave(h.member); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	scraping.Wait()
	after := gather(t, endpoint.Host)
	if got := after["mints_total ok"]; got != 20 {
		t.Errorf("%v mints are counted, want 20", got)
	}
	if after["cached_tokens"] != before["cached_tokens"] {
		t.Errorf("tokens of pools that ended are still counted: %v", after["cached_tokens"])
	}
	if got := after["requests_total minted"] - before["requests_total minted"]; got != 20 {
		t.Errorf("%v requests are counted, want 20", got)
	}
}

// What ended long ago is kept as a sum.
func TestRegistryStaysSmall(t *testing.T) {
	endpoint := newEndpoint()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(100 * 365 * 24 * time.Hour) // after what other tests left behind
		for range 50 {
			p := &pool{endpoint: endpoint, stats: new(stats)}
			p.stats.countMint("")
			register(p)
			retire(p, time.Now())
			p.stats.countMint("") // of a request that began before
			time.Sleep(time.Minute)
		}
		retire(&pool{endpoint: endpoint, stats: new(stats)}, time.Now())
	})
	registry.Lock()
	defer registry.Unlock()
	single := 0
	for _, ended := range registry.retired {
		if ended.endpoint == endpoint.Host {
			single++
		}
	}
	sum := 0
	for _, ended := range registry.retired {
		if ended.endpoint == endpoint.Host {
			sum += int(ended.mints[0].Load())
		}
	}
	sum += int(registry.total[endpoint.Host].mints[0].Load())
	if single > 5 || sum != 100 {
		t.Errorf("%d ended pools are kept one by one, and %d mints are counted, want 100", single, sum)
	}
}
