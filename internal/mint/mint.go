// Package mint mints session tokens at one endpoint: not faster than it may, not
// while the API is in trouble, and with the key that is valid now. It knows
// nothing of caches. It logs nothing; its results say what there is to log.
package mint

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"net/url"
	"runtime/debug"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
)

// MaxTimeout is how long a mint may take at most.
const MaxTimeout = time.Minute

// fallbackMemory is how long requests name permissions in the documented form
// alone after the API has refused the other.
const fallbackMemory = time.Hour

// Config is what a Minter needs. None of it may be missing.
type Config struct {
	Endpoint *url.URL
	Timeout  time.Duration // for one mint, its time in the queue included; at most MaxTimeout
	Rate     float64       // mints per second; infinite for no limit
	Burst    int           // mints at once
	Source   Source
	Now      func() clock.Time

	// Observe is called when a request to the API starts. What it returns is
	// called when that request has ended, with the reason if it has failed.
	Observe func() (ended func(dws.Reason))
}

// Source says how to reach the API now.
type Source interface {
	// Access returns the transport and the key.
	Access() (http.RoundTripper, *Key)

	// Refresh reports whether there is another key than this one, which the
	// API has refused.
	Refresh(refused *Key) bool
}

// Key is an API key.
type Key struct {
	Secret string
	ID     KeyID
}

// KeyID tells keys apart and does not give them away. Tokens of two keys differ.
type KeyID [16]byte

// NewKey returns the key with its id.
func NewKey(secret string) *Key {
	sum := sha256.Sum256([]byte(secret))
	return &Key{secret, KeyID(sum[:16])}
}

// Minter mints tokens. Its methods may be called concurrently.
type Minter struct {
	endpoint *url.URL
	timeout  time.Duration
	source   Source
	now      func() clock.Time
	observe  func() func(dws.Reason)

	queue   *queue
	backoff backoff
	api     apiClock

	documentedUntil atomic.Int64 // see fallbackMemory; by the monotonic clock
}

// New returns a minter.
func New(c Config) *Minter {
	return &Minter{
		endpoint: c.Endpoint, timeout: c.Timeout, source: c.Source, now: c.Now, observe: c.Observe,
		queue: newQueue(c.Rate, c.Burst, c.Timeout, func() time.Duration { return clock.Now().Mono() }),
	}
}

// Job is one token to mint.
type Job struct {
	*dws.Request
	Name         string        // the same for equal requests, and for no others
	MinRemaining time.Duration // a token that lives shorter than this is of little use
	Waiters      *Waiters      // who waits for the token
	Renewal      bool          // nobody has to wait: it yields to those who do
	Span         trace.Span    // of the request that led to it; nil for none

	// Peek looks for the token elsewhere. It is called before the job waits or
	// fails because others have to go first. An error ends the job.
	Peek func() error

	// Prepare is called when the job has its turn, before the request is sent.
	// An error ends the job, and its turn goes to another.
	Prepare func() error
}

// Result is what came of a job.
type Result struct {
	dws.Reply
	Key  *Key // that the token was minted with
	Sent bool // whether the API has been asked

	// Panic is what the mint panicked with, and where; nil if it did not.
	Panic any
	Stack []byte

	// FellBack is set if the API takes permissions in the documented form only.
	FellBack bool

	// ClockOffset is how far this machine's clock is ahead of the API's, if
	// that is more than MaxClockOffset.
	ClockOffset time.Duration
}

// Mint mints one token. What costs little comes first: what is remembered of
// failures, and a turn in the queue. Errors are those of Peek and Prepare, or of
// type *dws.Error.
func (m *Minter) Mint(j Job) (r Result, err error) {
	a := newAttempt(j.Name, j.DocumentID)
	if err, remembered := m.heldBack(a); err != nil {
		if !remembered {
			if err := j.Peek(); err != nil {
				return r, err
			}
		}
		return r, err
	}
	left, err := m.turn(&j)
	if err != nil {
		return r, err
	}
	defer func() {
		if !r.Sent {
			m.queue.giveBack()
		}
	}()
	if err := j.Prepare(); err != nil {
		return r, err
	}
	if err := m.backoff.admit(a, m.now()); err != nil {
		return r, err
	}
	r.Sent = true
	failed := &dws.Error{Reason: dws.Unavailable, Err: errors.New("minting panicked")} // unless it returns
	hurried := false
	defer func() {
		if p := recover(); p != nil {
			r.Panic, r.Stack = p, debug.Stack()
		}
		if failed = m.backoff.settle(a, failed, hurried, m.now()); failed != nil {
			err = failed
		}
	}()
	ctx, cancel := context.WithTimeout(newContext(), left)
	defer cancel()
	start := m.queue.now()
	failed = m.send(ctx, &j, &r)
	switch {
	case failed == nil:
		m.queue.observe(m.queue.now()-start, true)
	case failed.Reason == dws.Timeout && left < m.timeout:
		// It had less time than it is entitled to, since it had to queue:
		// that says nothing of the API.
		m.queue.observe(left, false)
		hurried = true
	}
	return r, nil
}

// heldBack returns why no mint may be sent now, if that is so, and whether it is
// this very request's failure that is remembered.
func (m *Minter) heldBack(a *attempt) (err *dws.Error, remembered bool) {
	err, remembered = m.backoff.heldBack(a, m.now())
	if err != nil && err.Reason == dws.KeyRefused {
		if _, key := m.source.Access(); m.source.Refresh(key) {
			return m.backoff.heldBack(a, m.now())
		}
	}
	return err, remembered
}

// turn waits for the job's turn under the rate, and returns how much time is
// left for the mint.
func (m *Minter) turn(j *Job) (left time.Duration, err error) {
	if j.Renewal {
		if !m.queue.takeSpare() {
			return 0, ErrYielded
		}
		return m.timeout, nil
	}
	if j.Waiters.abandon() {
		return 0, ErrAbandoned
	}
	if m.queue.take() {
		return m.timeout, nil
	}
	if err := j.Peek(); err != nil {
		return 0, err
	}
	left, refusal := m.takeTurn(j.Waiters)
	if refusal != nil {
		return 0, refusal
	}
	return left, nil
}

// newContext returns the context that a mint runs under. It inherits nothing
// from a request: Caddy's transport obeys dial addresses that reverse_proxy and
// forward_auth leave in the request's variables, and would carry the API key
// there. Nor does it end with a config. The replacer is for placeholders in the
// transport's own settings.
func newContext() context.Context {
	return context.WithValue(context.Background(), caddy.ReplacerCtxKey, caddy.NewReplacer())
}

// send asks the API, and once more each if the first attempt provably never
// reached it, or the key was refused and has changed; if the request was
// refused, and this machine's clock is off; and if it was refused, in the
// documented form.
func (m *Minter) send(ctx context.Context, j *Job, r *Result) *dws.Error {
	form := m.form(j.Request)
	repeated, fellBack, clockCorrected := false, false, false
	var early *Result // a token that ends early
	for {
		transport, key := m.source.Access()
		now, offset := m.api.now(m.now())
		reply, err := m.request(ctx, j, dws.Call{
			Request: j.Request, Transport: transport, Endpoint: m.endpoint, APIKey: key.Secret, Form: form, Now: now, Clock: m.now,
		})
		if differs, _ := reply.Offset(); differs.Abs() > MaxClockOffset {
			r.ClockOffset = differs
		}
		if err == nil && !clockCorrected && reply.Life < min(j.MinRemaining, reply.Asked-MaxClockOffset) && m.clockMoved(offset) {
			// The token ends early for a clock that was wrong, and is known now.
			m.queue.charge()
			clockCorrected, early = true, &Result{Reply: reply, Key: key}
			continue
		}
		if err != nil && early != nil {
			reply, key, err = early.Reply, early.Key, nil // better than none
		}
		if err == nil {
			if fellBack {
				m.documentedUntil.Store(int64(m.now().Mono() + fallbackMemory))
				r.FellBack = true
			}
			r.Reply, r.Key = reply, key
			return nil
		}
		failed, _ := errors.AsType[*dws.Error](err)
		if failed.Reason == dws.OverGranted {
			m.documentedUntil.Store(0)
		}
		switch {
		case ctx.Err() != nil:
			return failed
		case !clockCorrected && failed.MayBeExp() && m.clockMoved(offset):
			m.queue.charge()
			clockCorrected = true
		case j.MayFallBack(err, form):
			m.queue.charge()
			form, fellBack = dws.DocumentedName, true
		case !repeated && (failed.Unsent || failed.Reason == dws.KeyRefused && m.source.Refresh(key)):
			repeated = true
		default:
			return failed
		}
	}
}

// request sends one request, and is observed.
func (m *Minter) request(ctx context.Context, j *Job, call dws.Call) (reply dws.Reply, err error) {
	ctx, span := startMintSpan(ctx, j.Span, j.Renewal, m.endpoint)
	reason, ended := dws.Unavailable, m.observe() // unless it returns
	defer func() {
		ended(reason)
		endMintSpan(span, reply.StatusCode, reason)
	}()
	reply, err = call.Send(ctx)
	m.api.observe(reply.Exchange)
	reason = ""
	if failed, ok := errors.AsType[*dws.Error](err); ok {
		reason = failed.Reason
	}
	return reply, err
}

// clockMoved reports whether the API's time is known to be another than it was
// thought to be with this offset.
func (m *Minter) clockMoved(offset time.Duration) bool {
	_, known := m.api.now(m.now())
	return (known - offset).Abs() > MaxClockOffset
}

// form returns how to name the permissions.
func (m *Minter) form(r *dws.Request) dws.Form {
	if int64(m.now().Mono()) < m.documentedUntil.Load() && r.Documented() {
		return dws.DocumentedName
	}
	return dws.BothNames
}

// APITime returns the time by the API's clock, as far as it is known.
func (m *Minter) APITime(now clock.Time) time.Time {
	api, _ := m.api.now(now)
	return api
}

// KeyChanged must be called when the source has another key: what failed because
// the API refused the previous one is tried again at once.
func (m *Minter) KeyChanged() { m.backoff.forgetRefusals() }

// Failing reports whether a mint for a document, or without one if it is empty,
// would likely fail now.
func (m *Minter) Failing(documentID string, now clock.Time) bool {
	return m.backoff.isOpen(documentID, now)
}

// HeldBack returns until when no mint is sent, and why; zero if mints are sent.
func (m *Minter) HeldBack(now clock.Time) (until clock.Time, cause *dws.Error) {
	return m.backoff.openUntil(now)
}
