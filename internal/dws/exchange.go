package dws

import (
	"net/http"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

// datePrecision is what a Date header leaves out.
const datePrecision = time.Second

// Exchange is when a request was sent, when its answer came, and the Date in it.
type Exchange struct {
	Sent, Answered clock.Time
	Date           string
}

// At returns the API's time when the request was sent, at the latest; ok is
// false if the answer does not say.
func (x Exchange) At() (latest time.Time, ok bool) {
	date, err := http.ParseTime(x.Date)
	return date.Add(datePrecision), err == nil
}

// Offset is how far this machine's clock is ahead of the API's, or behind if
// negative, at least: 0 if they may agree; ok is false if the answer does not
// say. A date has whole seconds, and was written some time between request and
// answer.
func (x Exchange) Offset() (offset time.Duration, ok bool) {
	latest, ok := x.At()
	if !ok {
		return 0, false
	}
	// Where this machine's clock is set in between, the answer's time counts.
	sent := x.Answered.Wall().Add(x.Sent.Mono() - x.Answered.Mono())
	ahead := sent.Sub(latest)
	behind := x.Answered.Wall().Sub(latest.Add(-datePrecision))
	return max(ahead, 0) + min(behind, 0), true
}
