package dws

import (
	"net/http"
	"testing"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

// A date in Retry-After is by the API's clock, as the answer's own is.
func TestRetryAfterDateOfAnotherClock(t *testing.T) {
	answered := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	for _, ahead := range []time.Duration{0, 50 * time.Second, -50 * time.Second, 2 * time.Hour, -2 * time.Hour} {
		now := clock.At(answered.Add(ahead))
		retry, date := answered.Add(3*time.Second).Format(http.TimeFormat), answered.Format(http.TimeFormat)
		if got := readRetryAfter(retry, date, now).Since(now); got != 3*time.Second {
			t.Errorf("%s ahead: in %s", ahead, got)
		}
		if got := readRetryAfter("7", date, now).Since(now); got != 7*time.Second {
			t.Errorf("%s ahead: in %s", ahead, got)
		}
	}
	// Without a Date, this machine's clock is all there is.
	for _, date := range []string{"", "today"} {
		if got := readRetryAfter(answered.Add(3*time.Second).Format(http.TimeFormat), date, clock.At(answered)).Since(clock.At(answered)); got != 3*time.Second {
			t.Errorf("Date %q: in %s", date, got)
		}
	}
}

// A clock that is set while the API answers teaches nothing wrong.
func TestClockThatIsSetDuringAnExchange(t *testing.T) {
	wall := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for _, before := range []time.Duration{time.Hour, -time.Hour} { // it was off by so much, and is right now
		x := Exchange{Sent: clock.Of(wall.Add(before), time.Hour), Answered: clock.Of(wall.Add(time.Second), time.Hour+time.Second), Date: wall.Format(http.TimeFormat)}
		if offset, ok := x.Offset(); !ok || offset.Abs() > 2*time.Second {
			t.Errorf("off by %s, and set: %s", before, offset)
		}
	}
}

// The offset is never claimed to be more than it surely is.
func TestClockOffset(t *testing.T) {
	sent := time.Date(2026, 11, 22, 12, 0, 0, 600e6, time.UTC)
	x := Exchange{Sent: clock.At(sent), Answered: clock.At(sent.Add(2 * time.Second))}
	for date, want := range map[string]time.Duration{
		"Sun, 22 Nov 2026 12:00:00 GMT": 0,
		"Sun, 22 Nov 2026 12:00:02 GMT": 0,
		"Sun, 22 Nov 2026 11:59:59 GMT": 600 * time.Millisecond,
		"Sun, 22 Nov 2026 11:59:49 GMT": 10600 * time.Millisecond,
		"Sun, 22 Nov 2026 12:00:03 GMT": -400 * time.Millisecond,
		"Sun, 22 Nov 2026 12:00:13 GMT": -10400 * time.Millisecond,
	} {
		x.Date = date
		if got, ok := x.Offset(); !ok || got != want {
			t.Errorf("%s: got %v, want %s", date, got, want)
		}
	}
	for _, date := range []string{"", "today"} {
		x.Date = date
		if got, ok := x.Offset(); ok {
			t.Errorf("%q: got %s", date, got)
		}
	}
}
