package viewersession

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

const (
	// rowLength is how many different documents must fail one after the other
	// before the endpoint is held to be in trouble. One bad id is not enough.
	rowLength = 3

	// maxProbes is how many mints may try at once whether the endpoint is
	// back. More than one, so that a document which always fails cannot stand
	// for all the others.
	maxProbes = 3

	firstDelay = 500 * time.Millisecond
	maxDelay   = 10 * time.Second

	// How long a failed document is left alone. A permanent refusal is not
	// forgotten at once, but soon enough for whoever mends its cause.
	refusalMemory = 5 * time.Second
	failureMemory = time.Second

	// badNewsAge is how long it is believed that the API is in trouble when
	// nothing else has been heard of it.
	badNewsAge = time.Minute

	// maxRemembered bounds the failed documents that are remembered: their
	// ids come from strangers.
	maxRemembered = 4096
)

// backoff decides whether a mint may be sent now. It remembers what failed:
// per document, and for the endpoint as a whole.
//
// It is never a dead stop. When a delay is over, a few mints go through to see
// whether the endpoint is back, and the first that succeeds lets all through.
type backoff struct {
	mu sync.Mutex

	remembered map[string]remembered // by flight key

	row        []string  // the different documents that failed since the last answer
	cause      *failure  // why the endpoint is held back; nil while it is not
	until      time.Time // no mint before
	delay      time.Duration
	probes     int    // under way
	lastFailed string // the document that failed last: others come first
}

type remembered struct {
	cause *failure
	until time.Time
}

// admission is what admit grants: the right to send one mint. It must be
// handed back through settle.
type admission struct {
	key   string
	probe bool
}

// admit returns the failure to answer with if no mint may be sent for key now.
func (b *backoff) admit(key string, now time.Time) (admission, *failure) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r, ok := b.remembered[key]; ok {
		if now.Before(r.until) {
			return admission{}, r.cause
		}
		delete(b.remembered, key)
	}
	if b.cause == nil {
		return admission{key: key}, nil
	}
	until := b.until
	if key == b.lastFailed {
		until = until.Add(b.delay)
	}
	if now.Before(until) || b.probes >= maxProbes {
		return admission{}, b.cause
	}
	b.probes++
	return admission{key: key, probe: true}, nil
}

// settle records how an admitted mint ended and returns the failure to answer
// with, which knows more than f if the endpoint is held back now. A nil failure
// is a success.
func (b *backoff) settle(a admission, f *failure, now time.Time) *failure {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a.probe {
		b.probes--
	}
	switch {
	case f == nil:
		delete(b.remembered, a.key)
		b.answered(a, now)
	case f.reason == reasonRateLimited:
		// It was never sent: nothing is known of the endpoint.
	case f.reason == reasonThrottled:
		return b.hold(a, f, now)
	case !f.endpointTrouble():
		b.remember(a.key, f, now)
		b.answered(a, now)
	default:
		b.remember(a.key, f, now)
		if !slices.Contains(b.row, a.key) && len(b.row) < rowLength {
			b.row = append(b.row, a.key)
		}
		// While the endpoint is held back, only a probe's failure prolongs
		// it: mints that were under way before say nothing new.
		if len(b.row) >= rowLength && (b.cause == nil || a.probe) {
			return b.hold(a, f, now)
		}
	}
	return f
}

// answered ends the back-off: the endpoint is there. Only a time that it named
// itself is kept to the end.
func (b *backoff) answered(a admission, now time.Time) {
	if b.cause != nil && b.cause.reason == reasonThrottled && now.Before(b.until) && !a.probe {
		return
	}
	b.reset()
}

func (b *backoff) reset() {
	b.row, b.cause, b.until, b.delay, b.lastFailed = nil, nil, time.Time{}, 0, ""
}

// hold opens the back-off or prolongs it, and returns what to answer meanwhile.
func (b *backoff) hold(a admission, f *failure, now time.Time) *failure {
	if f.reason != reasonThrottled {
		b.lastFailed = a.key
	}
	b.delay = min(max(2*b.delay, firstDelay), maxDelay)
	until := f.retryAt
	if until.IsZero() {
		// Jitter: a fleet of gateways must not come back in step.
		until = now.Add(b.delay/2 + rand.N(b.delay/2+1))
	}
	if b.cause != nil && until.Before(b.until) {
		return b.cause
	}
	held := *f
	held.retryAt = until
	b.until, b.cause = until, &held
	return b.cause
}

func (b *backoff) remember(key string, f *failure, now time.Time) {
	if b.remembered == nil {
		b.remembered = make(map[string]remembered)
	}
	if len(b.remembered) >= maxRemembered {
		for other := range b.remembered { // any will do: a mint too many does no harm
			delete(b.remembered, other)
			break
		}
	}
	memory := failureMemory
	if f.permanent() {
		memory = refusalMemory
	}
	b.remembered[key] = remembered{f, now.Add(memory)}
}

// holding reports whether the endpoint is held back, and nobody knows better yet.
func (b *backoff) holding(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.cause != nil && now.Before(b.until.Add(badNewsAge))
}

// forgetRefusals lets everything be tried at once that failed because the API
// refused the key. It is called when the key has changed.
func (b *backoff) forgetRefusals() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, r := range b.remembered {
		if r.cause.reason == reasonKeyRefused {
			delete(b.remembered, key)
		}
	}
	if b.cause != nil && b.cause.reason == reasonKeyRefused {
		b.reset()
	}
}
