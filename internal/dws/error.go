package dws

import (
	"errors"
	"net/http"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

// Reason says in one word why there is no token.
type Reason string

// What the API, or the way to it, gives as a reason.
const (
	Throttled    Reason = "throttled"     // the API asked to slow down
	KeyRefused   Reason = "key_refused"   // the API answered 401 or 403
	Refused      Reason = "rejected"      // the API answered 400, 404, 422 or the like
	Unavailable  Reason = "unavailable"   // the API could not be reached, or answered 5xx
	InvalidReply Reason = "invalid_reply" // the API's answer is not a usable token
	OverGranted  Reason = "over_granted"  // the token permits more than was asked for
	Timeout      Reason = "timeout"       // no answer in time
)

// Error is why a request brought no token. It is never changed once it has been
// returned. Its text never holds a token or a key.
type Error struct {
	Reason Reason
	Err    error

	// RetryAt is when the next attempt can succeed at the earliest; zero if unknown.
	RetryAt clock.Time

	// Unsent is set if the API provably did not see the request, so that
	// sending it once more cannot mint twice.
	Unsent bool

	// StatusCode is the API's; 0 if it did not answer.
	StatusCode int

	// Misconfigured reports whether the operator must fix the configuration.
	Misconfigured bool

	// DocumentOnly is set if what was wrong with the answer says nothing of the
	// endpoint: a token that is too long, or another document's.
	DocumentOnly bool
}

// Error implements error.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap lets errors.Is and errors.As see the cause.
func (e *Error) Unwrap() error { return e.Err }

// MayBeExp reports whether the API may have refused the request for its exp, or
// ended the token before it came: one of the clocks is wrong then.
func (e *Error) MayBeExp() bool {
	_, ended := errors.AsType[*expiredTokenError](e.Err)
	return ended || e.StatusCode == http.StatusBadRequest || e.StatusCode == http.StatusUnprocessableEntity
}
