package mint

import (
	"sync/atomic"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
)

const (
	// MaxClockOffset is how far this machine's clock may be from the API's. Much
	// less than the shortest ttl, and much more than clocks differ that are set by
	// the network.
	MaxClockOffset = 30 * time.Second
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

// observe learns from an answer.
func (c *apiClock) observe(x dws.Exchange) {
	if offset, ok := x.Offset(); ok {
		c.latest.Store(&reading{x.Answered, x.Answered.Wall().Add(-offset)})
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
	if offset = now.Wall().Sub(api); offset.Abs() <= MaxClockOffset {
		return now.Wall(), 0
	}
	return api, offset
}
