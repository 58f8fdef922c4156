package mint

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
)

var errTest = errors.New("test")

func fail(b *backoff, key string, r dws.Reason, now clock.Time) *dws.Error {
	a := newAttempt(key, key)
	if err := b.admit(a, now); err != nil {
		return err
	}
	return b.settle(a, &dws.Error{Reason: r, Err: errTest}, false, now)
}

func admit(b *backoff, request, document string, now clock.Time) (*attempt, *dws.Error) {
	a := newAttempt(request, document)
	return a, b.admit(a, now)
}

func TestFewProbesAtOnce(t *testing.T) {
	var b backoff
	now := clock.Now()
	for i := range failureThreshold {
		fail(&b, fmt.Sprint("doc", i), dws.Unavailable, now)
	}
	if _, f := admit(&b, "early", "early", now); f == nil {
		t.Fatal("no back-off")
	}
	now = now.Add(maxDelay)
	var probes []*attempt
	for i := range 100 {
		if a, f := admit(&b, fmt.Sprint("probe", i), fmt.Sprint("probe", i), now); f == nil {
			probes = append(probes, a)
		}
	}
	if len(probes) != maxProbes {
		t.Fatalf("%d probes, want %d", len(probes), maxProbes)
	}
	// One fails, one succeeds: the endpoint is back.
	b.settle(probes[0], &dws.Error{Reason: dws.Timeout, Err: errTest}, false, now)
	b.settle(probes[1], nil, false, now)
	if b.isOpen("doc", now) {
		t.Error("held back after a success")
	}
	b.settle(probes[2], nil, false, now)
	if b.documents.probes != 0 {
		t.Errorf("%d probes are never given back", b.documents.probes)
	}
}

func TestDelayGrowsToItsBound(t *testing.T) {
	var b backoff
	now := clock.Now()
	for i := range failureThreshold {
		fail(&b, fmt.Sprint("doc", i), dws.Unavailable, now)
	}
	previous := time.Duration(0)
	for i := range 10 {
		delay := b.documents.until.Since(now)
		if delay < previous/4 || delay > maxDelay {
			t.Errorf("delay %d is %s after %s", i, delay, previous)
		}
		if i > 6 && delay < maxDelay/2 {
			t.Errorf("delay %d is only %s", i, delay)
		}
		previous = delay
		now = b.documents.until
		fail(&b, fmt.Sprint("probe", i), dws.Unavailable, now)
	}
}

// Mints that were under way when the endpoint was held back fail with it. They
// say nothing new, and must not make the delay longer.
func TestOneBurstOfFailuresIsOneDelay(t *testing.T) {
	var b backoff
	now := clock.Now()
	var burst []*attempt
	for i := range 200 {
		a, f := admit(&b, fmt.Sprint("doc", i), fmt.Sprint("doc", i), now)
		if f != nil {
			t.Fatal(f)
		}
		burst = append(burst, a)
	}
	for _, a := range burst {
		b.settle(a, &dws.Error{Reason: dws.Timeout, Err: errTest}, false, now)
	}
	if b.documents.delay != firstDelay {
		t.Errorf("delay %s, want %s", b.documents.delay, firstDelay)
	}
}

func TestWhatTheAPINamedIsNotShortened(t *testing.T) {
	var b backoff
	now := clock.Now()
	before, _ := admit(&b, "before", "before", now)
	a, _ := admit(&b, "throttled", "throttled", now)
	b.settle(a, &dws.Error{Reason: dws.Throttled, Err: errTest, RetryAt: now.Add(time.Minute)}, false, now)
	// A mint that was under way succeeds: the API still wants its minute.
	b.settle(before, nil, false, now)
	if _, f := admit(&b, "next", "next", now.Add(59*time.Second)); f == nil || f.Reason != dws.Throttled {
		t.Errorf("admitted before the API's time: %v", f)
	}
	if _, f := admit(&b, "next", "next", now.Add(time.Minute)); f != nil {
		t.Errorf("not admitted at the API's time: %v", f)
	}
}

func TestMemoryOfFailuresIsBounded(t *testing.T) {
	var b backoff
	now := clock.Now()
	for i := range 10 * maxRemembered {
		fail(&b, fmt.Sprint("made-up", i), dws.Refused, now)
	}
	if len(b.remembered) > maxRemembered {
		t.Errorf("%d failures are remembered, more than %d", len(b.remembered), maxRemembered)
	}
}

func TestOneBadDocumentOfSeveralUsersHoldsUpNobody(t *testing.T) {
	var b backoff
	now := clock.Now()
	for i := range 100 {
		a, f := admit(&b, fmt.Sprint("bad for user ", i), "bad", now)
		if f != nil {
			t.Fatal(f)
		}
		b.settle(a, &dws.Error{Reason: dws.Unavailable, Err: errTest}, false, now)
	}
	if b.isOpen("doc", now) {
		t.Error("one document of a hundred users counts as a hundred")
	}
}

// While others succeed, failures are the documents' own, and not the endpoint's.
func TestBadDocumentsAmongGoodOnesHoldUpNobody(t *testing.T) {
	var b backoff
	now := clock.Now()
	for i := range 1000 {
		if i%50 == 0 {
			a, f := admit(&b, fmt.Sprint("good", i), fmt.Sprint("good", i), now)
			if f != nil {
				t.Fatalf("after %d: %v", i, f)
			}
			b.settle(a, nil, false, now)
		}
		fail(&b, fmt.Sprint("bad", i), dws.Unavailable, now)
		now = now.Add(50 * time.Millisecond)
	}
}

func TestUnusableTokenOfOneUserHoldsUpNobody(t *testing.T) {
	var b backoff
	now := clock.Now()
	for i := range 100 {
		a, f := admit(&b, fmt.Sprint("doc", i), fmt.Sprint("doc", i), now)
		if f != nil {
			t.Fatal(f)
		}
		b.settle(a, &dws.Error{Reason: dws.InvalidReply, DocumentOnly: true, Err: errTest}, false, now)
	}
	if b.isOpen("doc", now) {
		t.Error("tokens that are too long for one user hold up all")
	}
}

func TestThrottleInsideABackoff(t *testing.T) {
	var b backoff
	now := clock.Now()
	late, _ := admit(&b, "late", "late", now)
	slow, _ := admit(&b, "slow", "slow", now)
	for i := range failureThreshold {
		fail(&b, fmt.Sprint("doc", i), dws.Unavailable, now)
	}
	throttled := &dws.Error{Reason: dws.Throttled, Err: errTest, RetryAt: now.Add(2 * time.Second)}
	if f := b.settle(late, throttled, false, now); f.Reason != dws.Throttled {
		t.Errorf("throttled, but the answer is %s", f.Reason)
	}
	b.settle(slow, nil, false, now)
	if _, f := admit(&b, "next", "next", now.Add(1999*time.Millisecond)); f == nil || f.Reason != dws.Throttled {
		t.Errorf("a success made the API's time shorter: %v", f)
	}
}

// A document that always fails must not be the one that says whether the
// endpoint is back.
func TestLastFailedDocumentLetsOthersProbeFirst(t *testing.T) {
	var b backoff
	now := clock.Now()
	for i := range failureThreshold {
		fail(&b, fmt.Sprint("doc", i), dws.Unavailable, now)
	}
	bad := fmt.Sprint("doc", failureThreshold-1)
	now = b.documents.until
	if _, f := admit(&b, "another user", bad, now); f == nil {
		t.Error("the document that failed last goes first")
	}
	if _, f := admit(&b, "other", "other", now); f != nil {
		t.Errorf("another document does not go first: %v", f)
	}
	if _, f := admit(&b, "another user", bad, now.Add(b.documents.delay)); f != nil {
		t.Errorf("the document that failed last never goes: %v", f)
	}
}

// An account may be allowed sessions of one kind only. Those of the other kind go
// on, but for the time that the API names, which is meant for all.
func TestKindsDoNotHoldEachOtherUp(t *testing.T) {
	failDocumentless := func(b *backoff, user string, r dws.Reason, now clock.Time) *dws.Error {
		a, err := admit(b, user, "", now)
		if err != nil {
			return err
		}
		return b.settle(a, &dws.Error{Reason: r, Err: errTest}, false, now)
	}
	for name, test := range map[string]struct {
		fail       func(*backoff, string, dws.Reason, clock.Time) *dws.Error
		own, other string // a document
	}{
		"documentless": {failDocumentless, "", "doc"},
		"documents":    {fail, "doc", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var b backoff
			now := clock.Now()
			for i := range failureThreshold {
				test.fail(&b, fmt.Sprint("request", i), dws.KeyRefused, now)
			}
			if _, f := admit(&b, "another", test.own, now); f == nil || !b.isOpen(test.own, now) || b.isOpen(test.other, now) {
				t.Error("they are not held back, or the others are as well")
			}
			if until, cause := b.openUntil(now); cause == nil || now.Reached(until) {
				t.Error("it is not said that they are")
			}
			a, f := admit(&b, "another", test.other, now)
			if f != nil {
				t.Fatal("the other kind is held back")
			}
			b.settle(a, nil, false, now)
			if _, f := admit(&b, "another", test.own, now); f == nil {
				t.Error("a success of the other kind lets them through")
			}
			b.forgetRefusals()
			if _, f := admit(&b, "another", test.own, now); f != nil {
				t.Error("held back although the key has changed")
			}

			a, _ = admit(&b, "throttled", test.own, now)
			b.settle(a, &dws.Error{Reason: dws.Throttled, RetryAt: now.Add(time.Minute), Err: errTest}, false, now)
			if _, f := admit(&b, "yet another", test.other, now.Add(59*time.Second)); f == nil || f.Reason != dws.Throttled {
				t.Error("the API's time is not kept by the other kind")
			}
		})
	}
}
