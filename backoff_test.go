package viewersession

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

var errTest = errors.New("test")

func fail(b *backoff, key string, r reason, now clock.Time) *failure {
	a, f := b.admit(key, key, now)
	if f != nil {
		return f
	}
	return b.settle(a, &failure{reason: r, err: errTest}, now)
}

func TestFewProbesAtOnce(t *testing.T) {
	var b backoff
	now := clock.Now()
	for i := range rowLength {
		fail(&b, fmt.Sprint("doc", i), reasonUnavailable, now)
	}
	if _, f := b.admit("early", "early", now); f == nil {
		t.Fatal("no back-off")
	}
	now = now.Add(maxDelay)
	var probes []admission
	for i := range 100 {
		if a, f := b.admit(fmt.Sprint("probe", i), fmt.Sprint("probe", i), now); f == nil {
			probes = append(probes, a)
		}
	}
	if len(probes) != maxProbes {
		t.Fatalf("%d probes, want %d", len(probes), maxProbes)
	}
	// One fails, one succeeds: the endpoint is back.
	b.settle(probes[0], &failure{reason: reasonTimeout, err: errTest}, now)
	b.settle(probes[1], nil, now)
	if b.holding(now) {
		t.Error("held back after a success")
	}
	b.settle(probes[2], nil, now)
	if b.probes != 0 {
		t.Errorf("%d probes are never given back", b.probes)
	}
}

func TestDelayGrowsToItsBound(t *testing.T) {
	var b backoff
	now := clock.Now()
	for i := range rowLength {
		fail(&b, fmt.Sprint("doc", i), reasonUnavailable, now)
	}
	previous := time.Duration(0)
	for i := range 10 {
		delay := b.until.Since(now)
		if delay < previous/4 || delay > maxDelay {
			t.Errorf("delay %d is %s after %s", i, delay, previous)
		}
		if i > 6 && delay < maxDelay/2 {
			t.Errorf("delay %d is only %s", i, delay)
		}
		previous = delay
		now = b.until
		fail(&b, fmt.Sprint("probe", i), reasonUnavailable, now)
	}
}

// Mints that were under way when the endpoint was held back fail with it. They
// say nothing new, and must not make the delay longer.
func TestOneBurstOfFailuresIsOneDelay(t *testing.T) {
	var b backoff
	now := clock.Now()
	var burst []admission
	for i := range 200 {
		a, f := b.admit(fmt.Sprint("doc", i), fmt.Sprint("doc", i), now)
		if f != nil {
			t.Fatal(f)
		}
		burst = append(burst, a)
	}
	for _, a := range burst {
		b.settle(a, &failure{reason: reasonTimeout, err: errTest}, now)
	}
	if b.delay != firstDelay {
		t.Errorf("delay %s, want %s", b.delay, firstDelay)
	}
}

func TestWhatTheAPINamedIsNotShortened(t *testing.T) {
	var b backoff
	now := clock.Now()
	before, _ := b.admit("before", "before", now)
	a, _ := b.admit("throttled", "throttled", now)
	b.settle(a, &failure{reason: reasonThrottled, err: errTest, retryAt: now.Add(time.Minute)}, now)
	// A mint that was under way succeeds: the API still wants its minute.
	b.settle(before, nil, now)
	if _, f := b.admit("next", "next", now.Add(59*time.Second)); f == nil || f.reason != reasonThrottled {
		t.Errorf("admitted before the API's time: %v", f)
	}
	if _, f := b.admit("next", "next", now.Add(time.Minute)); f != nil {
		t.Errorf("not admitted at the API's time: %v", f)
	}
}

func TestMemoryOfFailuresIsBounded(t *testing.T) {
	var b backoff
	now := clock.Now()
	for i := range 10 * maxRemembered {
		fail(&b, fmt.Sprint("made-up", i), reasonRejected, now)
	}
	if len(b.remembered) > maxRemembered {
		t.Errorf("%d failures are remembered, more than %d", len(b.remembered), maxRemembered)
	}
}

func TestLogGate(t *testing.T) {
	var g logGate
	now := time.Now()
	logged, suppressed := 0, 0
	for range 1000 {
		if n, ok := g.open(reasonTimeout, now); ok {
			logged++
			suppressed += n
		}
		now = now.Add(100 * time.Millisecond)
	}
	if logged != 10 || suppressed != 9*99 {
		t.Errorf("%d logged and %d counted, want 10 and 891", logged, suppressed)
	}
	if _, ok := g.open(reasonRejected, now); !ok {
		t.Error("one kind of trouble silences another")
	}
}

func TestOneBadDocumentOfSeveralUsersHoldsUpNobody(t *testing.T) {
	var b backoff
	now := clock.Now()
	for i := range 100 {
		a, f := b.admit(fmt.Sprint("bad for user ", i), "bad", now)
		if f != nil {
			t.Fatal(f)
		}
		b.settle(a, &failure{reason: reasonUnavailable, err: errTest}, now)
	}
	if b.holding(now) {
		t.Error("one document of a hundred users counts as a hundred")
	}
}

// While others succeed, failures are the documents' own, and not the endpoint's.
func TestBadDocumentsAmongGoodOnesHoldUpNobody(t *testing.T) {
	var b backoff
	now := clock.Now()
	for i := range 1000 {
		if i%50 == 0 {
			a, f := b.admit(fmt.Sprint("good", i), fmt.Sprint("good", i), now)
			if f != nil {
				t.Fatalf("after %d: %v", i, f)
			}
			b.settle(a, nil, now)
		}
		fail(&b, fmt.Sprint("bad", i), reasonUnavailable, now)
		now = now.Add(50 * time.Millisecond)
	}
}

func TestUnusableTokenOfOneUserHoldsUpNobody(t *testing.T) {
	var b backoff
	now := clock.Now()
	for i := range 100 {
		a, f := b.admit(fmt.Sprint("doc", i), fmt.Sprint("doc", i), now)
		if f != nil {
			t.Fatal(f)
		}
		b.settle(a, &failure{reason: reasonInvalidReply, ofOneDocument: true, err: errTest}, now)
	}
	if b.holding(now) {
		t.Error("tokens that are too long for one user hold up all")
	}
}

func TestThrottleInsideABackoff(t *testing.T) {
	var b backoff
	now := clock.Now()
	late, _ := b.admit("late", "late", now)
	slow, _ := b.admit("slow", "slow", now)
	for i := range rowLength {
		fail(&b, fmt.Sprint("doc", i), reasonUnavailable, now)
	}
	throttled := &failure{reason: reasonThrottled, err: errTest, retryAt: now.Add(2 * time.Second)}
	if f := b.settle(late, throttled, now); f.reason != reasonThrottled {
		t.Errorf("throttled, but the answer is %s", f.reason)
	}
	b.settle(slow, nil, now)
	if _, f := b.admit("next", "next", now.Add(1999*time.Millisecond)); f == nil || f.reason != reasonThrottled {
		t.Errorf("a success made the API's time shorter: %v", f)
	}
}

// A document that always fails must not be the one that says whether the
// endpoint is back.
func TestLastFailedDocumentLetsOthersProbeFirst(t *testing.T) {
	var b backoff
	now := clock.Now()
	for i := range rowLength {
		fail(&b, fmt.Sprint("doc", i), reasonUnavailable, now)
	}
	bad := fmt.Sprint("doc", rowLength-1)
	now = b.until
	if _, f := b.admit("another user", bad, now); f == nil {
		t.Error("the document that failed last goes first")
	}
	if _, f := b.admit("other", "other", now); f != nil {
		t.Errorf("another document does not go first: %v", f)
	}
	if _, f := b.admit("another user", bad, now.Add(b.delay)); f != nil {
		t.Errorf("the document that failed last never goes: %v", f)
	}
}
