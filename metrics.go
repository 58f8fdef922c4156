package viewersession

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

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
			send(c.mints, prometheus.CounterValue, float64(sum.mints[i].Load()), o)
		}
		send(c.inFlight, prometheus.GaugeValue, float64(sum.inFlight.Load()))
		send(c.lastMint, prometheus.GaugeValue, float64(sum.lastMint.Load())/1e9)
		send(c.backoffUntil, prometheus.GaugeValue, sum.backoffUntil)
		send(c.rateLimited, prometheus.CounterValue, float64(sum.rateLimited.Load()))
		send(c.cachedTokens, prometheus.GaugeValue, float64(sum.cachedTokens))
		send(c.cachedBytes, prometheus.GaugeValue, float64(sum.cachedBytes))
		send(c.cacheRejected, prometheus.CounterValue, float64(sum.turnedAway.Load()))
		for i, o := range storeOperations {
			send(c.storeOperations, prometheus.CounterValue, float64(sum.store[i].Load()), o.operation, o.outcome)
		}
	}
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
