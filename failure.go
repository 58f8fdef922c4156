package viewersession

import (
	"cmp"
	"errors"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

// reason says in one word why a viewer request got no token. It is what
// {http.viewer_session.error} holds, so the words are part of the contract.
type reason string

const (
	reasonNoUser       reason = "no_user"       // user_id is configured but came out empty
	reasonNoPermission reason = "no_permission" // no permission was left after replacing placeholders
	reasonNoClaim      reason = "no_claim"      // a placeholder in a claim came out empty
	reasonRateLimited  reason = "rate_limited"  // over mint_rate for longer than timeout
	reasonThrottled    reason = "throttled"     // the API asked to slow down
	reasonKeyRefused   reason = "key_refused"   // the API answered 401 or 403
	reasonRejected     reason = "rejected"      // the API answered 400, 404, 422 or the like
	reasonUnavailable  reason = "unavailable"   // the API could not be reached, or answered 5xx
	reasonInvalidReply reason = "invalid_reply" // the API's answer is not a usable token
	reasonOverGranted  reason = "over_granted"  // the API's token permits more than was asked for
	reasonTimeout      reason = "timeout"       // no answer within timeout
	reasonClientGone   reason = "client_gone"   // the client closed the request while it waited

	// On session paths only.
	reasonCrossSite reason = "cross_site" // the request comes from another site's page
	reasonAppAnswer reason = "app_answer" // the app said yes, but not to which document, or to no usable one
	reasonTooSoon   reason = "too_soon"   // a rejected token has been replaced, or could not be, a moment ago
)

// statusClientClosed is what Caddy answers (and logs) when the client went away.
const statusClientClosed = 499

// failure is why there is no token. It is shared by all who waited for the
// same mint, so it is never changed once it has been handed out. Its text
// never holds a token or a key.
type failure struct {
	reason reason
	err    error

	// retryAt is when the next attempt can succeed at the earliest; zero if unknown.
	retryAt clock.Time

	// unsent is true if the API surely did not see the request, so that
	// sending it once more cannot mint twice.
	unsent bool

	// answered is the API's status; 0 if it did not answer.
	answered int

	// misconfigured is true if it is for the operator to mend.
	misconfigured bool

	// ofOneDocument is true if what was wrong with the answer says nothing of
	// the endpoint: a token that is too long, or another's.
	ofOneDocument bool

	// hurried is true for a time-out of a mint that had less than timeout,
	// because it had to queue.
	hurried bool

	// gaveWay is true for a renewal that left mint_rate to those who wait.
	gaveWay bool
}

// Error implements error.
func (f *failure) Error() string { return f.err.Error() }

// Unwrap lets errors.Is and errors.As see what it comes from.
func (f *failure) Unwrap() error { return f.err }

// status is the HTTP status that the client sees.
func (f *failure) status() int {
	switch f.reason {
	case reasonNoUser:
		return http.StatusUnauthorized
	case reasonNoPermission, reasonNoClaim, reasonCrossSite:
		return http.StatusForbidden
	case reasonRateLimited, reasonThrottled, reasonTooSoon:
		return http.StatusServiceUnavailable
	case reasonTimeout:
		return http.StatusGatewayTimeout
	case reasonClientGone:
		return statusClientClosed
	default:
		return http.StatusBadGateway
	}
}

// permanent is true if asking again with the same words will be refused again.
func (f *failure) permanent() bool {
	return f.reason == reasonRejected || f.reason == reasonKeyRefused || f.reason == reasonOverGranted
}

// endpointTrouble is true if the failure speaks of the endpoint or the account
// rather than of the one document that was asked for.
func (f *failure) endpointTrouble() bool {
	switch f.reason {
	case reasonKeyRefused, reasonUnavailable, reasonTimeout, reasonThrottled:
		return true
	case reasonInvalidReply:
		return !f.ofOneDocument
	default:
		return false
	}
}

// retryAfter is what a Retry-After header says, in whole seconds.
func (f *failure) retryAfter(now clock.Time) int {
	return max(1, int(math.Ceil(now.Until(f.retryAt).Seconds())))
}

// apiTrouble reports whether the API is in trouble, or refuses the key: it has not
// said anything of the document that was asked for.
func (f *failure) apiTrouble() bool {
	switch f.reason {
	case reasonUnavailable, reasonTimeout, reasonThrottled, reasonKeyRefused, reasonInvalidReply:
		return true
	default:
		return false
	}
}

// mayBeExp reports whether the API may have refused the request for its exp, or
// ended the token before it came: one of the clocks is wrong then.
func (f *failure) mayBeExp() bool {
	_, ended := errors.AsType[*expiredTokenError](f.err)
	return ended || f.answered == http.StatusBadRequest || f.answered == http.StatusUnprocessableEntity
}

// asFailure returns err as a failure. What is not one already is a fault of
// ours or of the transport, which the client sees as a bad gateway.
func asFailure(err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	return &failure{reason: reasonUnavailable, err: err}
}

// logGate lets one log entry of a kind through per interval and counts the
// others: strangers choose the ids in URLs, and could fill the log otherwise.
type logGate struct {
	interval time.Duration // default: as the kind says

	mu    sync.Mutex
	kinds map[reason]*gate
}

type gate struct {
	until      time.Time
	suppressed int
}

// open reports whether to log now, and how many entries of this kind were
// suppressed since the last.
func (g *logGate) open(kind reason, now time.Time) (suppressed int, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	k := g.kinds[kind]
	if k == nil {
		if g.kinds == nil {
			g.kinds = make(map[reason]*gate)
		}
		k = new(gate)
		g.kinds[kind] = k
	}
	if now.Before(k.until) {
		k.suppressed++
		return 0, false
	}
	suppressed, k.suppressed = k.suppressed, 0
	k.until = now.Add(cmp.Or(g.interval, kind.logInterval()))
	return suppressed, true
}

// logInterval is how often this kind of trouble is logged at most.
func (r reason) logInterval() time.Duration {
	switch r {
	case reasonNoUser, reasonNoPermission, reasonNoClaim:
		return time.Minute
	default:
		return 10 * time.Second
	}
}
