package viewersession

import (
	"net/http"
	"sync/atomic"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

const (
	// maxClockOffset is how far this machine's clock may be from the API's. Much
	// less than the shortest ttl, and much more than clocks differ that are set by
	// the network.
	maxClockOffset = 30 * time.Second

	// datePrecision is what a Date header leaves out.
	datePrecision = time.Second
)

// apiClock tells the time of the API's machine, as far as its answers say it.
// From the latest answer it goes on by the clock of this machine that has gone
// further: neither a suspend nor a clock that is set back makes it too early.
type apiClock struct{ latest atomic.Pointer[reading] }

// reading is what the API's clock said at a moment of this machine's.
type reading struct {
	at  clock.Time
	api time.Time
}

// exchange is when a request was sent, when its answer came, and the Date in it.
type exchange struct {
	sent, answered clock.Time
	date           string
}

// at returns the API's time when the request was sent, at the latest; ok is
// false if the answer does not say.
func (x exchange) at() (latest time.Time, ok bool) {
	date, err := http.ParseTime(x.date)
	return date.Add(datePrecision), err == nil
}

// offset is how far this machine's clock is surely ahead of the API's, or
// behind if negative: 0 if they may agree; ok is false if the answer does not
// say. A date has whole seconds, and was written some time between request and
// answer.
func (x exchange) offset() (offset time.Duration, ok bool) {
	latest, ok := x.at()
	if !ok {
		return 0, false
	}
	// Where this machine's clock is set in between, the answer's time counts.
	sent := x.answered.Wall().Add(x.sent.Mono() - x.answered.Mono())
	ahead := sent.Sub(latest)
	behind := x.answered.Wall().Sub(latest.Add(-datePrecision))
	return max(ahead, 0) + min(behind, 0), true
}

// observe learns from an answer.
func (c *apiClock) observe(x exchange) {
	if offset, ok := x.offset(); ok {
		c.latest.Store(&reading{x.answered, x.answered.Wall().Add(-offset)})
	}
}

// now returns the API's time, and how far this machine's clock is ahead of it.
// As long as the clocks may agree, or nothing is known, that is this machine's.
func (c *apiClock) now(now clock.Time) (api time.Time, offset time.Duration) {
	latest := c.latest.Load()
	if latest == nil {
		return now.Wall(), 0
	}
	api = latest.api.Add(now.Since(latest.at))
	if offset = now.Wall().Sub(api); offset.Abs() <= maxClockOffset {
		return now.Wall(), 0
	}
	return api, offset
}
