package mint

import (
	"net/http"
	"testing"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
)

// Without a Date nothing is known of the API's clock, and ours is taken.
func TestAPIClockIsOnlyBelievedWhereItIsTold(t *testing.T) {
	var c apiClock
	now := clock.Now()
	for _, date := range []string{"", "today"} {
		c.observe(dws.Exchange{Sent: now, Answered: now, Date: date})
		if api, offset := c.now(now); !api.Equal(now.Wall()) || offset != 0 {
			t.Errorf("Date %q: got %s, %s", date, api, offset)
		}
	}
	for _, off := range []time.Duration{29 * time.Second, -29 * time.Second} {
		c.observe(dws.Exchange{Sent: now, Answered: now, Date: now.Wall().Add(off).UTC().Format(http.TimeFormat)})
		if api, offset := c.now(now); !api.Equal(now.Wall()) || offset != 0 {
			t.Errorf("off by %s: got %s, %s", off, api, offset)
		}
	}
	for _, off := range []time.Duration{35 * time.Second, -35 * time.Second, time.Hour} {
		c.observe(dws.Exchange{Sent: now, Answered: now, Date: now.Wall().Add(off).UTC().Format(http.TimeFormat)})
		api, offset := c.now(now)
		if diff := api.Sub(now.Wall().Add(off)); diff.Abs() > 2*time.Second || (offset+off).Abs() > 2*time.Second {
			t.Errorf("off by %s: got %s, %s", off, api.Sub(now.Wall()), offset)
		}
	}
}
