package viewersession

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// outcomes are the values of the metrics' label; their places are those in counters.
var outcomes = [...]outcome{outcomeOK, outcome(reasonKeyRefused), outcome(reasonRejected), outcome(reasonThrottled), outcome(reasonUnavailable), outcome(reasonTimeout), outcome(reasonInvalidReply), outcome(reasonOverGranted)}

// outcome says how one request to the API ended: outcomeOK, or a reason.
type outcome string

const outcomeOK outcome = "ok"

// counters is what a pool counts. It is the source of the metrics and of the
// admin API.
type counters struct {
	requests      [len(results)]atomic.Uint64 // by result
	mints         [len(outcomes)]atomic.Uint64
	rateLimited   atomic.Uint64
	cacheRejected atomic.Uint64
	store         [len(storeOperations)]atomic.Uint64
	inFlight      atomic.Int64
	lastMint      atomic.Int64 // Unix nanoseconds; 0 for never
}

func (c *counters) countRequest(r result) { c.requests[r].Add(1) }

func (c *counters) countMint(o outcome) {
	for i := range outcomes {
		if outcomes[i] == o {
			c.mints[i].Add(1)
			return
		}
	}
}

func (c *counters) countStore(operation, outcome string) {
	for i := range storeOperations {
		if storeOperations[i] == (storeOperation{operation, outcome}) {
			c.store[i].Add(1)
			return
		}
	}
}

// add adds what another has counted.
func (c *counters) add(other *counters) {
	for i := range results {
		c.requests[i].Add(other.requests[i].Load())
	}
	for i := range outcomes {
		c.mints[i].Add(other.mints[i].Load())
	}
	for i := range storeOperations {
		c.store[i].Add(other.store[i].Load())
	}
	c.rateLimited.Add(other.rateLimited.Load())
	c.cacheRejected.Add(other.cacheRejected.Load())
	c.inFlight.Add(other.inFlight.Load())
	c.lastMint.Store(max(c.lastMint.Load(), other.lastMint.Load()))
}

// ledger knows all pools, and what those have counted that have ended: a counter
// must not go back when a reload changes a pool's settings. One lock, so that
// no pool is missed or counted twice while it ends.
var ledger struct {
	sync.Mutex
	pools []*pool
	ended []endedPool
	total map[string]*counters // of pools that ended long ago, by endpoint
}

// endedPool is a pool that no config uses any more. Requests that began before
// still count for a while.
type endedPool struct {
	endpoint string
	*counters
	at time.Time
}

const endedPoolGrace = 2 * maxTimeout

func enterLedger(p *pool) {
	ledger.Lock()
	defer ledger.Unlock()
	ledger.pools = append(ledger.pools, p)
}

func leaveLedger(p *pool, now time.Time) {
	ledger.Lock()
	defer ledger.Unlock()
	ledger.pools = slices.DeleteFunc(ledger.pools, func(other *pool) bool { return other == p })
	ledger.ended = slices.DeleteFunc(ledger.ended, func(ended endedPool) bool {
		if now.Sub(ended.at) < endedPoolGrace {
			return false
		}
		if ledger.total == nil {
			ledger.total = make(map[string]*counters)
		}
		if ledger.total[ended.endpoint] == nil {
			ledger.total[ended.endpoint] = new(counters)
		}
		ledger.total[ended.endpoint].add(ended.counters)
		return true
	})
	ledger.ended = append(ledger.ended, endedPool{p.endpoint.Host, p.counters, now})
}

// allPools returns the pools that are in use, the oldest first.
func allPools() []*pool {
	ledger.Lock()
	defer ledger.Unlock()
	return slices.Clone(ledger.pools)
}

const namespace, subsystem = "caddy", "viewer_session"

// mintDuration lives as long as the process, as Caddy's registry does not.
var mintDuration = prometheus.NewHistogramVec(prometheus.HistogramOpts{
	Namespace: namespace, Subsystem: subsystem, Name: "mint_duration_seconds",
	Help:    "How long requests to mint a token took, whatever came of them.",
	Buckets: []float64{0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60},
}, []string{"endpoint"})

// collector makes the metrics when they are asked for, from what all pools have
// counted: several may have the same endpoint.
type collector struct {
	requests, mints, inFlight, lastMint, backoffUntil, rateLimited, cachedTokens, cachedBytes, cacheRejected, storeOperations *prometheus.Desc
}

var metrics = newCollector()

func newCollector() *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, subsystem, name), help, append([]string{"endpoint"}, labels...), nil)
	}
	return &collector{
		requests:      desc("requests_total", "Requests to viewer routes, by where their token came from.", "result"),
		mints:         desc("mints_total", "Requests to mint a token, by how they ended.", "outcome"),
		inFlight:      desc("mints_in_flight", "Requests to mint a token that are under way."),
		lastMint:      desc("last_mint_timestamp_seconds", "When a token was minted last; 0 for never."),
		backoffUntil:  desc("backoff_until_timestamp_seconds", "Until when no token is minted because the API throttles or fails; 0 if it does not."),
		rateLimited:   desc("rate_limited_total", "Mints that were refused because no turn under mint_rate came in time."),
		cachedTokens:  desc("cached_tokens", "Tokens in memory."),
		cachedBytes:   desc("cached_bytes", "Memory that cached tokens take, as cache_size counts it."),
		cacheRejected: desc("cache_rejected_total", "Tokens that a full cache has turned away; they are kept for a shorter time."),

		storeOperations: desc("store_operations_total", "Operations on the store that gateways share, by how they ended.", "operation", "outcome"),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{c.requests, c.mints, c.inFlight, c.lastMint, c.backoffUntil, c.rateLimited, c.cachedTokens, c.cachedBytes, c.cacheRejected, c.storeOperations} {
		descs <- desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(metrics chan<- prometheus.Metric) {
	for endpoint, sum := range sumByEndpoint() {
		send := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
			metrics <- prometheus.MustNewConstMetric(desc, kind, value, append([]string{endpoint}, labels...)...)
		}
		for r := resultHit; r <= resultError; r++ {
			send(c.requests, prometheus.CounterValue, float64(sum.requests[r].Load()), r.String())
		}
		for i, o := range outcomes {
			send(c.mints, prometheus.CounterValue, float64(sum.mints[i].Load()), string(o))
		}
		send(c.inFlight, prometheus.GaugeValue, float64(sum.inFlight.Load()))
		send(c.lastMint, prometheus.GaugeValue, float64(sum.lastMint.Load())/1e9)
		send(c.backoffUntil, prometheus.GaugeValue, sum.backoffUntil)
		send(c.rateLimited, prometheus.CounterValue, float64(sum.rateLimited.Load()))
		send(c.cachedTokens, prometheus.GaugeValue, float64(sum.cachedTokens))
		send(c.cachedBytes, prometheus.GaugeValue, float64(sum.cachedBytes))
		send(c.cacheRejected, prometheus.CounterValue, float64(sum.cacheRejected.Load()))
		for i, o := range storeOperations {
			send(c.storeOperations, prometheus.CounterValue, float64(sum.store[i].Load()), o.operation, o.outcome)
		}
	}
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
	ledger.Lock()
	defer ledger.Unlock()
	for endpoint, total := range ledger.total {
		of(endpoint).add(total)
	}
	for _, ended := range ledger.ended {
		of(ended.endpoint).add(ended.counters)
	}
	for _, p := range ledger.pools {
		sum := of(p.endpoint.Host)
		sum.add(p.counters)
		tokens, bytes := p.cache.size()
		sum.cachedTokens += tokens
		sum.cachedBytes += bytes
		if until, _ := p.backoff.heldUntil(p.now()); !until.IsZero() {
			sum.backoffUntil = max(sum.backoffUntil, float64(until.Wall().UnixNano())/1e9)
		}
	}
	return sums
}

// registerMetrics adds the metrics to the registry of a config that loads:
// Caddy has a new one each time, and one for all handlers of a config.
func registerMetrics(registry prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{metrics, mintDuration} {
		if err := registry.Register(c); err != nil {
			if _, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); !ok {
				return fmt.Errorf("metrics: %w", err)
			}
		}
	}
	return nil
}
