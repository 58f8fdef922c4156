package viewersession

import (
	"errors"
	"math"
	"net/http"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

// result says where a request's token came from.
type result uint8

const (
	resultNone     result = iota // not known yet
	resultHit                    // cached and fresh
	resultRenewing               // cached, and renewed in the background
	resultMinted                 // minted for this request
	resultShared                 // minted for another request for the same token
	resultStale                  // cached, with less than min_remaining left: none could be minted
	resultBypass                 // no token, by rule
	resultError                  // no token, because of a failure
)

// results are the names, in placeholders and labels.
var results = [...]string{
	resultHit:      "hit",
	resultRenewing: "renewing",
	resultMinted:   "minted",
	resultShared:   "shared",
	resultStale:    "stale",
	resultBypass:   "bypass",
	resultError:    "error",
}

// String implements fmt.Stringer.
func (r result) String() string { return results[r] }

// reason says in one word why a viewer request got no token. It is what
// {http.viewer_session.error} holds, so the words are part of the contract.
type reason string

const (
	reasonNoUser       reason = "no_user"       // user_id is configured but came out empty
	reasonNoPermission reason = "no_permission" // no permission was left after replacing placeholders
	reasonNoClaim      reason = "no_claim"      // a placeholder in a claim came out empty
	reasonClientGone   reason = "client_gone"   // the client closed the request while it waited

	reasonRateLimited  = reason(mint.RateLimited)
	reasonThrottled    = reason(dws.Throttled)
	reasonKeyRefused   = reason(dws.KeyRefused)
	reasonRefused      = reason(dws.Refused)
	reasonUnavailable  = reason(dws.Unavailable)
	reasonInvalidReply = reason(dws.InvalidReply)
	reasonOverGranted  = reason(dws.OverGranted)
	reasonTimeout      = reason(dws.Timeout)

	// In the log only.
	reasonMisfit   reason = "misfit"   // a path fits but for its id
	reasonReplaced reason = "replaced" // something further out has replaced Cache-Control

	// On session paths only.
	reasonCrossSite reason = "cross_site" // the request comes from another site's page
	reasonAppAnswer reason = "app_answer" // the app approved, but named nothing usable, or a document where there is none
	reasonTooSoon   reason = "too_soon"   // a rejected token was replaced, or could not be, a moment ago
)

// statusClientClosed is what Caddy answers (and logs) when the client went away.
const statusClientClosed = 499

// status is the HTTP status that the client sees.
func (r reason) status() int {
	switch r {
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

// apiTrouble reports whether the API is in trouble, or refuses the key: it has
// not said anything of the document that was asked for.
func (r reason) apiTrouble() bool {
	switch r {
	case reasonUnavailable, reasonTimeout, reasonThrottled, reasonKeyRefused, reasonInvalidReply:
		return true
	default:
		return false
	}
}

// failure is why there is no token. It is shared by all who waited for the same
// mint, so it never changes. Its text never holds a token or a key.
type failure struct {
	reason  reason
	err     error
	retryAt clock.Time // when the next attempt can succeed at the earliest; zero if unknown
}

// Error implements error.
func (f *failure) Error() string { return f.err.Error() }

// Unwrap lets errors.Is and errors.As see the cause.
func (f *failure) Unwrap() error { return f.err }

// retryAfter is what a Retry-After header says, in whole seconds.
func (f *failure) retryAfter(now clock.Time) int {
	return max(1, int(math.Ceil(now.Until(f.retryAt).Seconds())))
}

// misconfigured reports whether the operator must fix the configuration.
func (f *failure) misconfigured() bool {
	e, ok := errors.AsType[*dws.Error](f.err)
	return ok && e.Misconfigured
}

// failureOf returns the failure that an error means.
func failureOf(err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	if e, ok := errors.AsType[*dws.Error](err); ok {
		return &failure{reason(e.Reason), err, e.RetryAt}
	}
	return &failure{reason: reasonUnavailable, err: err}
}

// failureOfMissing returns the failure for a request that lacks something, or nil.
func failureOfMissing(c *claims.Claims, missing claims.Missing) *failure {
	if missing.Permissions == nil {
		missing.Permissions = c.Unguarded()
	}
	switch {
	case missing.User != nil:
		return &failure{reason: reasonNoUser, err: missing.User}
	case missing.Permissions != nil:
		return &failure{reason: reasonNoPermission, err: missing.Permissions}
	case missing.Claims != nil:
		return &failure{reason: reasonNoClaim, err: missing.Claims}
	default:
		return nil
	}
}
