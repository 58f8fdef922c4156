package viewersession

import (
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

var testNow = time.Unix(1_800_000_000, 0)

// steady returns a token without spread.
func steady(life, asked time.Duration) *token {
	t := newTestToken("key", "jwt", testNow.Add(life).Unix(), testNow.Add(asked).Unix(), testNow)
	t.spread = 1
	return t
}

func TestFreshness(t *testing.T) {
	for _, test := range []struct {
		name                 string
		life, asked          time.Duration
		minRemaining         time.Duration
		fresh, due, shortEnd time.Duration // what is left at the last moment of each
	}{
		// Renewal is due halfway between the full life and min_remaining.
		{"an hour", time.Hour, time.Hour, 15 * time.Minute, 37*time.Minute + 30*time.Second + 1, 15 * time.Minute, 1},
		{"half of it", time.Hour, time.Hour, 30 * time.Minute, 45*time.Minute + 1, 30 * time.Minute, 1},
		{"a day", 24 * time.Hour, 24 * time.Hour, 6 * time.Hour, 15*time.Hour + 1, 6 * time.Hour, 1},
		{"a minute", time.Minute, time.Minute, 15 * time.Second, 37500*time.Millisecond + 1, 15 * time.Second, 1},

		// The API granted less: everything shrinks in proportion.
		{"a third granted", 20 * time.Minute, time.Hour, 15 * time.Minute, 12*time.Minute + 30*time.Second + 1, 5 * time.Minute, 1},
		{"a minute of an hour", time.Minute, time.Hour, 15 * time.Minute, 37500*time.Millisecond + 1, 15 * time.Second, 1},
		{"ten seconds of a day", 10 * time.Second, 24 * time.Hour, 12 * time.Hour, 7500*time.Millisecond + 1, 5 * time.Second, 1},

		// It granted more than it was asked for, and readToken has cut that.
		{"no more than asked", time.Hour, 30 * time.Minute, 15 * time.Minute, 37*time.Minute + 30*time.Second + 1, 15 * time.Minute, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			token := steady(test.life, test.asked)
			for _, step := range []struct {
				left time.Duration
				want freshness
			}{
				{test.life, fresh},
				{test.fresh, fresh},
				{test.fresh - 1, due},
				{test.due, due},
				{test.due - 1, belowMinimum},
				{test.shortEnd, belowMinimum},
				{0, expired},
				{-1, expired},
				{-time.Hour, expired},
			} {
				now := testNow.Add(test.life - step.left)
				if got := token.freshness(clock.At(now), test.minRemaining); got != step.want {
					t.Errorf("with %v left: got %d, want %d", step.left, got, step.want)
				}
			}
		})
	}
}

func TestFreshnessOfNoToken(t *testing.T) {
	var none *token
	if got := none.freshness(clock.At(testNow), 0); got != expired {
		t.Errorf("got %d", got)
	}
}

// The clock was set back or forward while the process was running.
func TestFreshnessFollowsTheWallClock(t *testing.T) {
	start := time.Now() // with a monotonic reading
	token := newTestToken("key", "jwt", start.Add(time.Hour).Unix(), start.Add(time.Hour).Unix(), start)
	token.spread = 1
	if got := token.freshness(clock.At(start.Round(0).Add(2*time.Hour)), 15*time.Minute); got != expired {
		t.Errorf("two hours later: got %d", got)
	}
	if got := token.freshness(clock.At(start.Round(0).Add(-time.Hour)), 15*time.Minute); got != fresh {
		t.Errorf("an hour earlier: got %d", got)
	}
}

// The renewal point varies by a tenth either way, and is never pushed beyond
// what min_remaining guarantees, nor to the very start of the token's life.
func TestRenewalIsSpread(t *testing.T) {
	low, high := math.Inf(1), math.Inf(-1)
	for range 10_000 {
		token := newTestToken("key", "jwt", testNow.Add(time.Hour).Unix(), testNow.Add(time.Hour).Unix(), testNow)
		low, high = min(low, token.spread), max(high, token.spread)
	}
	if low < 0.9 || low > 0.91 || high > 1.1 || high < 1.09 {
		t.Errorf("the factors reach from %v to %v", low, high)
	}
	for _, minRemaining := range []time.Duration{time.Second, 15 * time.Minute, 30 * time.Minute} {
		for _, spread := range []float64{0.9, 1.1} {
			token := steady(time.Hour, time.Hour)
			token.spread = spread
			if got := token.freshness(clock.At(testNow), minRemaining); got != fresh {
				t.Errorf("min_remaining %v, factor %v: a new token is %d", minRemaining, spread, got)
			}
			if got := token.freshness(clock.At(testNow.Add(time.Hour-minRemaining)), minRemaining); got != due {
				t.Errorf("min_remaining %v, factor %v: at min_remaining it is %d", minRemaining, spread, got)
			}
			point := time.Duration(float64(time.Hour+minRemaining) / 2 * spread)
			if got := token.freshness(clock.At(testNow.Add(time.Hour-point-time.Millisecond)), minRemaining); got != fresh {
				t.Errorf("min_remaining %v, factor %v: before its point it is %d", minRemaining, spread, got)
			}
			if got := token.freshness(clock.At(testNow.Add(time.Hour-point+time.Millisecond)), minRemaining); got != due {
				t.Errorf("min_remaining %v, factor %v: behind its point it is %d", minRemaining, spread, got)
			}
		}
	}
}

// Short grants must not turn every request into a mint: a new token is fresh,
// however little the API granted.
func TestNewTokensAreFreshHoweverShort(t *testing.T) {
	for seconds := int64(2); seconds <= 3600; seconds++ {
		for _, asked := range []time.Duration{time.Minute, time.Hour, 30 * 24 * time.Hour} {
			token := newTestToken("key", "jwt", testNow.Unix()+seconds, testNow.Add(asked).Unix(), testNow)
			token.spread = 1.1
			if got := token.freshness(clock.At(testNow), min(asked/2, time.Duration(seconds)*time.Second)); time.Duration(seconds)*time.Second < asked && got != fresh {
				t.Fatalf("%d s of %v: got %d", seconds, asked, got)
			}
		}
	}
}

func TestTokenKnowsItsLife(t *testing.T) {
	token := newTestToken("key", "jwt", testNow.Unix()+90, testNow.Unix()+120, testNow.Add(500*time.Millisecond))
	if token.key() != "key" || token.jwt() != "jwt" || token.exp != testNow.Unix()+90 || token.life != 89500*time.Millisecond || token.asked != 119500*time.Millisecond {
		t.Errorf("got %+v", token)
	}
}

func TestOneRequestRenews(t *testing.T) {
	const workers, rounds = 4, 5000
	tokens := make([]*token, rounds)
	for i := range tokens {
		tokens[i] = steady(time.Hour, time.Hour)
	}
	var winners [rounds]atomic.Int32
	var round atomic.Int32 // the workers go from token to token side by side
	var done sync.WaitGroup
	for range workers {
		done.Go(func() {
			for i := range rounds {
				round.Add(1)
				for round.Load() < int32(workers*i+workers/2) {
					runtime.Gosched()
				}
				if tokens[i].claimRenewal(clock.Time{}) {
					winners[i].Add(1)
				}
			}
		})
	}
	done.Wait()
	for i := range winners {
		if got := winners[i].Load(); got != 1 {
			t.Fatalf("%d requests renew", got)
		}
	}
}

func TestRenewalIsTriedAgainAfterASecond(t *testing.T) {
	token := steady(time.Hour, time.Hour)
	for _, step := range []struct {
		after time.Duration
		want  bool
	}{
		{0, true},
		{0, false},
		{999 * time.Millisecond, false},
		{time.Second, true},
		{1999 * time.Millisecond, false},
		{5 * time.Second, true},
		{5 * time.Second, false},
	} {
		if got := token.claimRenewal(clock.Time{}.Add(step.after)); got != step.want {
			t.Errorf("after %v: got %v", step.after, got)
		}
	}
}
