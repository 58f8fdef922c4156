package mint

import (
	"crypto/sha256"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
)

const (
	// failureThreshold is how many different documents must fail one after the
	// other before mints to the endpoint are held back. One bad id is not enough.
	failureThreshold = 3

	// successGrace is how long a success speaks for the endpoint: mints that
	// fail although others succeed have trouble of their own.
	successGrace = 5 * time.Second

	// maxProbes is how many mints may try at once whether the endpoint is
	// back. More than one, so that a document which always fails cannot stand
	// for all the others.
	maxProbes = 3

	firstDelay = 500 * time.Millisecond
	maxDelay   = 10 * time.Second

	// How long a failed request is not sent again: a refusal for longer, but
	// not so long that its cause, once fixed, goes on.
	refusalMemory = 5 * time.Second
	failureMemory = time.Second

	// BadNewsAge is how long a failure is assumed to persist at most.
	BadNewsAge = time.Minute

	// maxRemembered bounds the failed requests that are remembered: their ids
	// come from strangers.
	maxRemembered = 4096
)

// backoff decides whether a mint may be sent now. It remembers what failed, for
// each request and for the endpoint as a whole.
type backoff struct {
	mu sync.Mutex

	remembered map[hash]remembered

	// throttle is what the API said when it named a time, and is kept until
	// that time whatever else happens.
	throttle *dws.Error

	// An account may be allowed one kind of sessions only: requests for a
	// document, and those without one, do not hold each other up.
	documents, documentless circuit
}

// circuit is a circuit breaker that never stops everything: when a delay is over,
// a few mints go through to see whether the endpoint is back, and the first that
// succeeds lets all through.
type circuit struct {
	consecutiveFailures []hash // the different documents that failed since the last answer
	lastSuccess         clock.Time
	cause               *dws.Error // why the endpoint is held back; nil while it is not
	until               clock.Time // no mint before, while it is held back
	delay               time.Duration
	probes              int  // under way
	lastFailed          hash // the document that failed last: others come first
}

// hash identifies a request or a document, whose own length strangers choose.
type hash [sha256.Size]byte

type remembered struct {
	cause *dws.Error
	until clock.Time
}

// attempt is one mint, as the back-off knows it.
type attempt struct {
	request      hash
	document     hash // without a document, the request: what a failure may be due to, if not the API
	documentless bool
	probe        bool
}

func newAttempt(name, document string) *attempt {
	a := attempt{request: sha256.Sum256([]byte(name)), documentless: document == ""}
	a.document = a.request
	if !a.documentless {
		a.document = sha256.Sum256([]byte(document))
	}
	return &a
}

func (b *backoff) circuit(a *attempt) *circuit {
	if a.documentless {
		return &b.documentless
	}
	return &b.documents
}

// admit returns the error to answer with if the mint may not be sent now. If it
// returns none, settle must be called.
func (b *backoff) admit(a *attempt, now clock.Time) *dws.Error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err, _ := b.heldBackLocked(a, now); err != nil {
		return err
	}
	if c := b.circuit(a); c.cause != nil {
		c.probes++
		a.probe = true
	}
	return nil
}

// heldBack says in advance what admit would say, and whether that is because this
// very request failed a moment ago.
func (b *backoff) heldBack(a *attempt, now clock.Time) (err *dws.Error, remembered bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.heldBackLocked(a, now)
}

func (b *backoff) heldBackLocked(a *attempt, now clock.Time) (err *dws.Error, remembered bool) {
	if r, ok := b.remembered[a.request]; ok {
		if !now.Reached(r.until) {
			return r.cause, true
		}
		delete(b.remembered, a.request)
	}
	if b.throttle != nil {
		if !now.Reached(b.throttle.RetryAt) {
			return b.throttle, false
		}
		b.throttle = nil
	}
	c := b.circuit(a)
	if c.cause == nil {
		return nil, false
	}
	until := c.until
	if a.document == c.lastFailed {
		until = until.Add(c.delay)
	}
	if !now.Reached(until) || c.probes >= maxProbes {
		return c.cause, false
	}
	return nil, false
}

// settle records how an admitted mint ended, nil for a success, and returns the
// error to answer with, which knows more than f if mints are held back now. A
// mint that was hurried had too little time to say anything of the endpoint.
func (b *backoff) settle(a *attempt, f *dws.Error, hurried bool, now clock.Time) *dws.Error {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.circuit(a)
	if a.probe {
		c.probes--
	}
	switch {
	case f == nil:
		c.lastSuccess = now
		c.reset()
	case hurried:
	case f.Reason == dws.Throttled && !f.RetryAt.IsZero():
		if b.throttle == nil || !b.throttle.RetryAt.Reached(f.RetryAt) {
			b.throttle = f
		}
		// Afterwards a few go first.
		c.open(new(attempt), f, now)
		return b.throttle
	case f.Reason == dws.Throttled:
		c.open(new(attempt), f, now)
		return c.cause
	case !endpointTrouble(f):
		b.remember(a.request, f, now)
		c.reset() // it answers
	default:
		b.remember(a.request, f, now)
		if !slices.Contains(c.consecutiveFailures, a.document) && len(c.consecutiveFailures) < failureThreshold {
			c.consecutiveFailures = append(c.consecutiveFailures, a.document)
		}
		sure := f.Unsent || f.Reason == dws.KeyRefused || now.Since(c.lastSuccess) >= successGrace
		// Mints that were under way when the endpoint was held back say
		// nothing new: only a probe's failure prolongs it.
		if a.probe || c.cause == nil && len(c.consecutiveFailures) >= failureThreshold && sure {
			c.open(a, f, now)
			return c.cause
		}
	}
	return f
}

func (c *circuit) reset() {
	c.consecutiveFailures, c.cause, c.until, c.delay, c.lastFailed = nil, nil, clock.Time{}, 0, hash{}
}

// open holds mints back, or goes on doing so.
func (c *circuit) open(a *attempt, f *dws.Error, now clock.Time) {
	c.lastFailed = a.document
	c.delay = min(max(2*c.delay, firstDelay), maxDelay)
	// Jitter: a fleet of gateways must not come back in step.
	c.until = now.Add(c.delay/2 + rand.N(c.delay/2+1))
	held := *f
	if held.RetryAt.IsZero() {
		held.RetryAt = c.until
	}
	if !c.until.Reached(held.RetryAt) {
		c.until = held.RetryAt
	}
	c.cause = &held
}

func (b *backoff) remember(request hash, f *dws.Error, now clock.Time) {
	if b.remembered == nil {
		b.remembered = make(map[hash]remembered)
	}
	if len(b.remembered) >= maxRemembered {
		for other := range b.remembered { // any will do: a mint too many does no harm
			delete(b.remembered, other)
			break
		}
	}
	memory := failureMemory
	if permanent(f) {
		memory = refusalMemory
	}
	b.remembered[request] = remembered{f, now.Add(memory)}
}

// openUntil returns until when no mint is sent at all, and why; zero if mints are sent.
func (b *backoff) openUntil(now clock.Time) (until clock.Time, cause *dws.Error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range []*circuit{&b.documents, &b.documentless} {
		if c.cause != nil && !now.Reached(c.until) && !until.Reached(c.until) {
			until, cause = c.until, c.cause
		}
	}
	if b.throttle != nil && !now.Reached(b.throttle.RetryAt) && !until.Reached(b.throttle.RetryAt) {
		until, cause = b.throttle.RetryAt, b.throttle
	}
	return until, cause
}

// isOpen reports whether mints for a document, or without one if it is empty, are
// held back, or were until a moment ago and no answer has said otherwise.
func (b *backoff) isOpen(document string, now clock.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := &b.documents
	if document == "" {
		c = &b.documentless
	}
	return b.throttle != nil && !now.Reached(b.throttle.RetryAt) || c.cause != nil && !now.Reached(c.until.Add(BadNewsAge))
}

// forgetRefusals lets everything be tried at once that failed because the API
// refused the key. It is called when the key has changed.
func (b *backoff) forgetRefusals() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for request, r := range b.remembered {
		if r.cause.Reason == dws.KeyRefused {
			delete(b.remembered, request)
		}
	}
	for _, c := range []*circuit{&b.documents, &b.documentless} {
		if c.cause != nil && c.cause.Reason == dws.KeyRefused {
			c.reset()
		}
	}
}

// permanent reports whether the same request will be refused again.
func permanent(err *dws.Error) bool {
	return err.Reason == dws.Refused || err.Reason == dws.KeyRefused || err.Reason == dws.OverGranted
}

// endpointTrouble reports whether the error speaks of the endpoint or the key
// rather than of the one document that was asked for.
func endpointTrouble(err *dws.Error) bool {
	switch err.Reason {
	case dws.KeyRefused, dws.Unavailable, dws.Timeout, dws.Throttled:
		return true
	case dws.InvalidReply:
		return !err.DocumentOnly
	default:
		return false
	}
}
