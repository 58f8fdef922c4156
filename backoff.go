package viewersession

import (
	"crypto/sha256"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

const (
	// rowLength is how many different documents must fail one after the other
	// before the endpoint is held to be in trouble. One bad id is not enough.
	rowLength = 3

	// successGrace is how long a success speaks for the endpoint: mints that
	// fail although others succeed have trouble of their own.
	successGrace = 5 * time.Second

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

	// maxRemembered bounds the failed asks that are remembered: their ids
	// come from strangers.
	maxRemembered = 4096
)

// backoff decides whether a mint may be sent now. It remembers what failed:
// per ask, and for the endpoint as a whole.
//
// It is never a dead stop. When a delay is over, a few mints go through to see
// whether the endpoint is back, and the first that succeeds lets all through.
type backoff struct {
	mu sync.Mutex

	remembered map[askHash]remembered

	// throttle is what the API said when it named a time, and is kept until
	// that time whatever else happens.
	throttle *failure

	row         []askHash // the different documents that failed since the last answer
	lastSuccess clock.Time
	cause       *failure   // why the endpoint is held back; nil while it is not
	until       clock.Time // no mint before, while it is held back
	delay       time.Duration
	probes      int     // under way
	lastFailed  askHash // the document that failed last: others come first
}

// askHash stands for an ask or a document, whose own length strangers choose.
type askHash [sha256.Size]byte

type remembered struct {
	cause *failure
	until clock.Time
}

// admission is what admit grants: the right to send one mint. It must be
// handed back through settle.
type admission struct {
	ask, document askHash
	probe         bool
}

func newAdmission(name, document string) admission {
	return admission{ask: sha256.Sum256([]byte(name)), document: sha256.Sum256([]byte(document))}
}

// admit returns the failure to answer with if no mint may be sent now for the
// ask with this name, which is for this document.
func (b *backoff) admit(name, document string, now clock.Time) (admission, *failure) {
	a := newAdmission(name, document)
	b.mu.Lock()
	defer b.mu.Unlock()
	if f, _ := b.heldLocked(a, now); f != nil {
		return admission{}, f
	}
	if b.cause != nil {
		b.probes++
		a.probe = true
	}
	return a, nil
}

// held says in advance what admit would say, and whether that is because this
// ask has failed a moment ago.
func (b *backoff) held(name, document string, now clock.Time) (f *failure, remembered bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.heldLocked(newAdmission(name, document), now)
}

func (b *backoff) heldLocked(a admission, now clock.Time) (f *failure, remembered bool) {
	if r, ok := b.remembered[a.ask]; ok {
		if !now.Reached(r.until) {
			return r.cause, true
		}
		delete(b.remembered, a.ask)
	}
	if b.throttle != nil {
		if !now.Reached(b.throttle.retryAt) {
			return b.throttle, false
		}
		b.throttle = nil
	}
	if b.cause == nil {
		return nil, false
	}
	until := b.until
	if a.document == b.lastFailed {
		until = until.Add(b.delay)
	}
	if !now.Reached(until) || b.probes >= maxProbes {
		return b.cause, false
	}
	return nil, false
}

// settle records how an admitted mint ended and returns the failure to answer
// with, which knows more than f if the endpoint is held back now. A nil failure
// is a success.
func (b *backoff) settle(a admission, f *failure, now clock.Time) *failure {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a.probe {
		b.probes--
	}
	switch {
	case f == nil:
		b.lastSuccess = now
		b.reset()
	case f.hurried:
		// It had too little time: nothing is known of the endpoint.
	case f.reason == reasonThrottled && !f.retryAt.IsZero():
		if b.throttle == nil || !b.throttle.retryAt.Reached(f.retryAt) {
			b.throttle = f
		}
		// Afterwards a few go first.
		b.hold(admission{}, f, now)
		return b.throttle
	case f.reason == reasonThrottled:
		b.hold(admission{}, f, now)
		return b.cause
	case !f.endpointTrouble():
		b.remember(a.ask, f, now)
		b.reset() // it answers
	default:
		b.remember(a.ask, f, now)
		if !slices.Contains(b.row, a.document) && len(b.row) < rowLength {
			b.row = append(b.row, a.document)
		}
		sure := f.unsent || f.reason == reasonKeyRefused || now.Since(b.lastSuccess) >= successGrace
		// Mints that were under way when the endpoint was held back say
		// nothing new: only a probe's failure prolongs it.
		if a.probe || b.cause == nil && len(b.row) >= rowLength && sure {
			b.hold(a, f, now)
			return b.cause
		}
	}
	return f
}

func (b *backoff) reset() {
	b.row, b.cause, b.until, b.delay, b.lastFailed = nil, nil, clock.Time{}, 0, askHash{}
}

// hold opens the back-off or prolongs it.
func (b *backoff) hold(a admission, f *failure, now clock.Time) {
	b.lastFailed = a.document
	b.delay = min(max(2*b.delay, firstDelay), maxDelay)
	// Jitter: a fleet of gateways must not come back in step.
	b.until = now.Add(b.delay/2 + rand.N(b.delay/2+1))
	held := *f
	if held.retryAt.IsZero() {
		held.retryAt = b.until
	}
	if !b.until.Reached(held.retryAt) {
		b.until = held.retryAt
	}
	b.cause = &held
}

func (b *backoff) remember(ask askHash, f *failure, now clock.Time) {
	if b.remembered == nil {
		b.remembered = make(map[askHash]remembered)
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
	b.remembered[ask] = remembered{f, now.Add(memory)}
}

// heldUntil returns until when no mint is sent at all, and why; zero if mints are sent.
func (b *backoff) heldUntil(now clock.Time) (until clock.Time, cause *failure) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cause != nil && !now.Reached(b.until) {
		until, cause = b.until, b.cause
	}
	if b.throttle != nil && !now.Reached(b.throttle.retryAt) && !until.Reached(b.throttle.retryAt) {
		until, cause = b.throttle.retryAt, b.throttle
	}
	return until, cause
}

// holding reports whether the endpoint is held back, and nobody knows better yet.
func (b *backoff) holding(now clock.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.throttle != nil && !now.Reached(b.throttle.retryAt) ||
		b.cause != nil && !now.Reached(b.until.Add(badNewsAge))
}

// forgetRefusals lets everything be tried at once that failed because the API
// refused the key. It is called when the key has changed.
func (b *backoff) forgetRefusals() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ask, r := range b.remembered {
		if r.cause.reason == reasonKeyRefused {
			delete(b.remembered, ask)
		}
	}
	if b.cause != nil && b.cause.reason == reasonKeyRefused {
		b.reset()
	}
}
