package viewersession

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

const (
	// renewalSpread is how far, as a share, the renewal point varies from one
	// token to the next, so that tokens minted together are not renewed together.
	renewalSpread = 0.1

	// renewalRetry is how long a failed renewal rests before the next request
	// for the token tries again.
	renewalRetry = time.Second

	// replacementRest is how long a key rests after a token was replaced
	// because a browser said that it was rejected.
	replacementRest = 5 * time.Second
)

// epoch counts purges: it is the time that purges know.
type epoch uint32

// token is a minted session token with what decides on its use. But for the
// atomics it never changes.
type token struct {
	text     string // the key and the jwt, in one piece: there may be a million of them
	keyBytes uint32
	epoch    epoch         // when its minting began, as purges count time
	exp      int64         // Unix seconds, by the API's clock
	minted   clock.Time    // by this machine's clocks
	life     time.Duration // from minting; never handed out after that
	asked    time.Duration // the life that was asked for
	spread   float64       // this token's factor on the renewal point

	// renewAfter is when the next renewal may start. One request moves it
	// forward and becomes the one that renews. Like those below it counts
	// nanoseconds by the monotonic clock.
	renewAfter atomic.Int64

	// failedAt is when the latest attempt to replace the token failed; 0 for never.
	failedAt atomic.Int64

	// replaceAfter is when the token may be replaced because a browser says
	// that it was rejected.
	replaceAfter atomic.Int64
}

func newToken(key, jwt string, exp int64, l dws.Lifetime) *token {
	return &token{
		text:     key + jwt,
		keyBytes: uint32(len(key)), //nolint:gosec // request lines and headers have limits
		spread:   1 + renewalSpread*(2*rand.Float64()-1),
		exp:      exp,
		minted:   l.Minted,
		life:     l.Life,
		asked:    l.Asked,
	}
}

// key is the whole cache key; it is compared on every look-up.
func (t *token) key() string { return t.text[:t.keyBytes] }

func (t *token) keyID() mint.KeyID { return mint.KeyID([]byte(t.text[:len(mint.KeyID{})])) }

func (t *token) jwt() string { return t.text[t.keyBytes:] }

// freshness says what a token is good for at a moment.
type freshness uint8

const (
	expired      freshness = iota // never handed out
	belowMinimum                  // less than min_remaining left: only if none can be minted
	due                           // handed out, and renewed in the background
	fresh
)

// remaining is how much of the token's life is left.
func (t *token) remaining(now clock.Time) time.Duration { return t.life - now.Since(t.minted) }

// freshness counts from the minting, by the clock that says that more time has
// passed: neither one that is set back nor a suspend prolongs a token's life.
func (t *token) freshness(now clock.Time, minRemaining time.Duration) freshness {
	if t == nil {
		return expired
	}
	remaining := t.remaining(now)
	if remaining <= 0 {
		return expired
	}
	if t.life < t.asked {
		// The API granted less than was asked for. Scaled to the lifetime,
		// a short token does not turn every request into a mint.
		minRemaining = time.Duration(float64(minRemaining) * float64(t.life) / float64(t.asked))
	}
	switch {
	case remaining < minRemaining:
		return belowMinimum
	case remaining <= time.Duration(float64(t.life+minRemaining)/2*t.spread):
		return due
	default:
		return fresh
	}
}

// claimRenewal reports whether the caller is the one to renew the token now.
func (t *token) claimRenewal(now clock.Time) bool {
	after := t.renewAfter.Load()
	return int64(now.Mono()) >= after &&
		t.renewAfter.CompareAndSwap(after, int64(now.Mono()+renewalRetry))
}

// tooSoon returns a failure if the token rests after a replacement: a page that
// goes wrong must not turn every attempt into a mint.
func (t *token) tooSoon(now clock.Time) error {
	rest := time.Duration(t.replaceAfter.Load()) - now.Mono()
	if rest <= 0 {
		return nil
	}
	return &failure{
		reason:  reasonTooSoon,
		err:     fmt.Errorf("this document's token was replaced, or could not be, less than %s ago", replacementRest),
		retryAt: now.Add(min(rest, replacementRest)),
	}
}

// claimReplacement lets the rejected token be replaced, once in a while.
func (t *token) claimReplacement(now clock.Time) error {
	if err := t.tooSoon(now); err != nil {
		return err
	}
	t.replaceAfter.Store(int64(now.Mono() + replacementRest))
	return nil
}

// is reports whether text is this token, with its signature or without: a
// browser that names a rejected token can keep it out of access logs that way.
func (t *token) is(text string) bool {
	unsigned := t.jwt()[:strings.LastIndexByte(t.jwt(), '.')]
	return text == t.jwt() || text == unsigned
}
