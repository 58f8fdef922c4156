package clock

import (
	"testing"
	"time"
)

func TestTimeHasPassedByTheClockThatSaysMore(t *testing.T) {
	wall := time.Unix(1_800_000_000, 0)
	start := Of(wall, time.Hour)
	for _, test := range []struct {
		name       string
		wall, mono time.Duration // since start
		passed     time.Duration
	}{
		{"both agree", time.Minute, time.Minute, time.Minute},
		{"set forward", 2 * time.Hour, time.Minute, 2 * time.Hour},
		{"set back", -2 * time.Hour, time.Minute, time.Minute},
		{"suspended", 8 * time.Hour, time.Second, 8 * time.Hour},
		{"before", -time.Minute, -time.Minute, -time.Minute},
	} {
		now := Of(wall.Add(test.wall), time.Hour+test.mono)
		if got := now.Since(start); got != test.passed {
			t.Errorf("%s: %v have passed, want %v", test.name, got, test.passed)
		}
		later := start.Add(10 * time.Minute)
		if got := now.Until(later); got != 10*time.Minute-test.passed {
			t.Errorf("%s: %v are left", test.name, got)
		}
		if got := now.Reached(later); got != (test.passed >= 10*time.Minute) {
			t.Errorf("%s: reached is %v", test.name, got)
		}
	}
}

func TestMomentsOfTheStandardLibrary(t *testing.T) {
	now := time.Now()
	got := At(now)
	if !got.Wall().Equal(now) || got.IsZero() || !(Time{}).IsZero() {
		t.Errorf("got %v", got)
	}
	if later := At(now.Add(time.Minute)); later != got.Add(time.Minute) || later.Since(got) != time.Minute || later.Mono()-got.Mono() != time.Minute {
		t.Errorf("a minute later: %v", later.Since(got))
	}
	if Now().Since(got) < 0 {
		t.Error("time goes back")
	}
}
