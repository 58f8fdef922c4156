package viewersession

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/viewersession/caddy-viewer-session/internal/dws"
)

// outcomes are how requests to the API end, as the metrics' label says it. Their
// indexes are those in counters.
var outcomes = [...]string{"ok", string(dws.KeyRefused), string(dws.Refused), string(dws.Throttled), string(dws.Unavailable), string(dws.Timeout), string(dws.InvalidReply), string(dws.OverGranted)}

// storeOperation is one of the metric's series: an operation on the store, and
// how it ended.
type storeOperation struct{ operation, outcome string }

var storeOperations = [...]storeOperation{
	{"acquire", "hit"},
	{"acquire", "miss"},
	{"acquire", "locked"},
	{"acquire", "held"},
	{"acquire", "error"},
	{"acquire", "unavailable"},
	{"put", "ok"},
	{"put", "error"},
	{"put", "unavailable"},
	{"release", "ok"},
	{"release", "error"},
	{"release", "unavailable"},
}

// counters is what a pool counts. It is the source of the metrics and of the
// admin API.
type counters struct {
	requests    [len(results)]atomic.Uint64 // by result
	mints       [len(outcomes)]atomic.Uint64
	rateLimited atomic.Uint64
	turnedAway  atomic.Uint64
	store       [len(storeOperations)]atomic.Uint64
	inFlight    atomic.Int64
	lastMint    atomic.Int64 // Unix nanoseconds; 0 for never
}

func (c *counters) countRequest(r result) { c.requests[r].Add(1) }

func (c *counters) countMint(failed dws.Reason) {
	c.mints[slices.Index(outcomes[:], cmp.Or(string(failed), "ok"))].Add(1)
}

func (c *counters) countStore(operation, outcome string) {
	c.store[slices.Index(storeOperations[:], storeOperation{operation, outcome})].Add(1)
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
	c.turnedAway.Add(other.turnedAway.Load())
	c.inFlight.Add(other.inFlight.Load())
	c.lastMint.Store(max(c.lastMint.Load(), other.lastMint.Load()))
}

// stats are what a pool counts, and how it fares.
type stats struct {
	counters
	minting, sharing health
	mintDuration     prometheus.Observer
}

// observeMint counts a request to the API, from its start to its end.
func (s *stats) observeMint() (ended func(dws.Reason)) {
	start := time.Now()
	s.inFlight.Add(1)
	return func(failed dws.Reason) {
		s.inFlight.Add(-1)
		s.countMint(failed)
		s.mintDuration.Observe(time.Since(start).Seconds())
		if failed == "" {
			s.lastMint.Store(time.Now().UnixNano())
		}
	}
}

// health is what an operator asks first: what fails, and since when.
type health struct {
	limiter logLimiter

	mu         sync.Mutex
	lastReason reason
	lastError  string // empty if there was none
	lastAt     time.Time
	since      time.Time // of the first failure that no success has followed; zero while all is well
	logged     bool      // whether the log says so
}

// recordFailure reports whether to log the failure, and how many like it were
// not logged since the last.
func (h *health) recordFailure(why reason, text string, now time.Time) (suppressed int, log bool) {
	suppressed, log = h.limiter.allow(why, now)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lastReason, h.lastError, h.lastAt, h.logged = why, text, now, h.logged || log
	if h.since.IsZero() {
		h.since = now
	}
	return suppressed, log
}

// recordSuccess reports whether to log that all is well again, and how long it
// was not.
func (h *health) recordSuccess(now time.Time) (after time.Duration, log bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	after, log = now.Sub(h.since), h.logged
	h.since, h.logged = time.Time{}, false
	return after, log
}

// errorStatus is what the admin API says of an error.
type errorStatus struct {
	At     *time.Time `json:"at,omitempty"`
	Until  *time.Time `json:"until,omitempty"`
	Reason string     `json:"reason,omitempty"`
	Error  string     `json:"error"`
}

// status returns what the admin API says.
func (h *health) status() (failingSince *time.Time, last *errorStatus) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lastError != "" {
		last = &errorStatus{At: new(h.lastAt), Reason: string(h.lastReason), Error: h.lastError}
	}
	if !h.since.IsZero() {
		failingSince = new(h.since)
	}
	return failingSince, last
}

// logLimiter lets one log entry of a kind through per interval and counts the
// others: strangers choose the ids in URLs, and could fill the log otherwise.
type logLimiter struct {
	interval time.Duration // default: as the kind says

	mu    sync.Mutex
	kinds map[reason]*logLimit
}

type logLimit struct {
	until      time.Time
	suppressed int
}

// allow reports whether to log now, and how many entries of this kind were
// suppressed since the last.
func (l *logLimiter) allow(kind reason, now time.Time) (suppressed int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.kinds[kind]
	if k == nil {
		if l.kinds == nil {
			l.kinds = make(map[reason]*logLimit)
		}
		k = new(logLimit)
		l.kinds[kind] = k
	}
	if now.Before(k.until) {
		k.suppressed++
		return 0, false
	}
	suppressed, k.suppressed = k.suppressed, 0
	k.until = now.Add(cmp.Or(l.interval, kind.logInterval()))
	return suppressed, true
}

// logInterval is how often this kind of failure is logged at most.
func (r reason) logInterval() time.Duration {
	switch r {
	case reasonNoUser, reasonNoPermission, reasonNoClaim, reasonMisfit, reasonReplaced:
		return time.Minute
	default:
		return 10 * time.Second
	}
}

const namespace, subsystem = "caddy", "viewer_session"

// mintDuration lives as long as the process, as Caddy's registry does not.
var mintDuration = prometheus.NewHistogramVec(prometheus.HistogramOpts{
	Namespace: namespace, Subsystem: subsystem, Name: "mint_duration_seconds",
	Help:    "How long requests to mint a token took, whatever came of them.",
	Buckets: []float64{0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60},
}, []string{"endpoint"})
