package viewersession

import (
	"errors"
	"testing"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
)

// What is wrong with the request comes before what the route lacks, and each
// reason has the status of the contract.
func TestReasonsAndTheirStatuses(t *testing.T) {
	user, permissions, claim := errors.New("user"), errors.New("permissions"), errors.New("claim")
	for _, test := range []struct {
		missing claims.Missing
		want    reason
	}{
		{claims.Missing{User: user, Permissions: permissions, Claims: claim}, reasonNoUser},
		{claims.Missing{Permissions: permissions, Claims: claim}, reasonNoPermission},
		{claims.Missing{Claims: claim}, reasonNoClaim},
	} {
		if f := failureOfMissing(new(claims.Claims), test.missing); f == nil || f.reason != test.want {
			t.Errorf("%v: got %v", test.missing, f)
		}
	}
	if f := failureOfMissing(new(claims.Claims), claims.Missing{}); f != nil {
		t.Errorf("got %v", f)
	}
	for status, reasons := range map[int][]reason{
		401: {reasonNoUser}, 403: {reasonNoPermission, reasonNoClaim, reasonCrossSite}, 499: {reasonClientGone}, 504: {reasonTimeout},
		502: {reasonKeyRefused, reasonRefused, reasonUnavailable, reasonInvalidReply, reasonOverGranted, reasonAppAnswer},
		503: {reasonRateLimited, reasonThrottled, reasonTooSoon},
	} {
		for _, r := range reasons {
			if got := r.status(); got != status {
				t.Errorf("%s: got %d, want %d", r, got, status)
			}
		}
	}
}

// One kind of failure does not silence another.
func TestLogLimiter(t *testing.T) {
	var l logLimiter
	now := time.Now()
	logged, suppressed := 0, 0
	for range 1000 {
		if n, ok := l.allow(reasonTimeout, now); ok {
			logged++
			suppressed += n
		}
		now = now.Add(100 * time.Millisecond)
	}
	if logged != 10 || suppressed != 9*99 {
		t.Errorf("%d logged and %d counted, want 10 and 891", logged, suppressed)
	}
	if _, ok := l.allow(reasonRefused, now); !ok {
		t.Error("one kind of failure silences another")
	}
}
