// Package clock tells time by the wall clock and the monotonic clock at once.
//
// Either alone can be wrong: somebody sets the wall clock, and the monotonic
// one stands still while a machine is suspended. Where a mistake must not
// prolong anything, time has passed as soon as one of them says so.
package clock

import "time"

// Time is a moment. The zero value is none.
type Time struct {
	wall int64         // Unix nanoseconds
	mono time.Duration // since a century before the process began
}

var began = time.Now()

// century keeps every moment positive, a test's included.
const century = 100 * 365 * 24 * time.Hour

// Now returns the present moment.
func Now() Time { return At(time.Now()) }

// At returns a moment that the standard library has told.
func At(t time.Time) Time { return Time{t.UnixNano(), t.Sub(began) + century} }

// Of returns a moment of which the two clocks say different things.
func Of(wall time.Time, mono time.Duration) Time { return Time{wall.UnixNano(), mono} }

// IsZero reports whether t is the zero value.
func (t Time) IsZero() bool { return t == Time{} }

// Add returns the moment d later.
func (t Time) Add(d time.Duration) Time { return Time{t.wall + int64(d), t.mono + d} }

// Since returns how much time has passed from earlier to t, as the clock says
// by which it is more.
func (t Time) Since(earlier Time) time.Duration {
	return max(time.Duration(t.wall-earlier.wall), t.mono-earlier.mono)
}

// Until returns how much time is left from t to later, as the clock says by
// which it is less.
func (t Time) Until(later Time) time.Duration { return -t.Since(later) }

// Reached reports whether the moment has come, or is over.
func (t Time) Reached(moment Time) bool { return t.Since(moment) >= 0 }

// Wall returns what the wall clock says.
func (t Time) Wall() time.Time { return time.Unix(0, t.wall) }

// Mono returns what the monotonic clock says: a positive number to compare.
func (t Time) Mono() time.Duration { return t.mono }
