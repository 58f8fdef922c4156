package mint

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

// size returns how much there is in the queue.
func (q *queue) size() (entries, lines int, timer bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.entries, len(q.lines) + q.turns.Len(), q.timer != nil
}

// setTokens lets the queue have so many turns now.
func (q *queue) setTokens(tokens float64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.refill()
	q.tokens = tokens
}

// When the queue is full, the newest place of the longest line gives way.
func TestLongestLineGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := func() time.Duration { return clock.Now().Mono() }
		const timeout = 2*time.Second + 2*timerSlack // ten places
		q := newQueue(10, 1, timeout, now)
		q.take()
		enter := func(client string) *place { return q.enter(client, now()+timeout) }
		decided := func(p *place) bool {
			select {
			case <-p.decided:
				return true
			default:
				return false
			}
		}
		var long []*place
		for range 12 {
			long = append(long, enter("long"))
		}
		for i, p := range long {
			if decided(p) != (i >= 10) || p.granted {
				t.Errorf("place %d: decided %v, granted %v", i, decided(p), p.granted)
			}
		}
		if wait := long[11].wait; wait <= 0 || wait > time.Second {
			t.Errorf("room in %s", wait)
		}
		short := enter("short")
		if decided(short) || !decided(long[9]) || long[9].granted || decided(long[8]) {
			t.Error("the newest place of the longest line has not given way")
		}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if !decided(short) || !short.granted || !long[0].granted || decided(long[1]) {
			t.Error("turns do not go round")
		}
		// Of two lines that are as long, neither gives way to the other.
		for range 20 {
			enter("a")
			enter("b")
		}
		if entries, _, _ := q.size(); entries > 10 {
			t.Errorf("%d entries", entries)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if entries, lines, timer := q.size(); entries != 0 || lines != 0 || timer {
			t.Error("the queue is not empty")
		}
	})
}

// It is the longest line that gives way, wherever it stands.
func TestShortLinesDoNotGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := func() time.Duration { return clock.Now().Mono() }
		const timeout = 2*time.Second + 2*timerSlack // ten places
		q := newQueue(10, 1, timeout, now)
		q.take()
		first := q.enter("first", now()+timeout)
		var long *place
		for range 9 {
			long = q.enter("long", now()+timeout)
		}
		q.enter("late", now()+timeout)
		select {
		case <-first.decided:
			t.Error("the only place of the first line has given way")
		case <-long.decided:
		}
		time.Sleep(timeout)
		synctest.Wait()
	})
}

// What mints usually need is left to them, all of timeout at most. One that is
// slow changes little.
func TestQueueLearnsHowLongMintsTake(t *testing.T) {
	q := newQueue(10, 1, time.Second, func() time.Duration { return time.Hour })
	observe := func(times int, took time.Duration, enough bool) {
		for range times {
			q.observe(took, enough)
		}
	}
	want := func(least, most time.Duration) {
		t.Helper()
		if got := q.reserve(); got < least || got > most {
			t.Errorf("%s are left for mints, want %s to %s", got, least, most)
		}
	}
	observe(100, 100*time.Millisecond, true)
	want(500*time.Millisecond, 500*time.Millisecond)
	observe(1, 950*time.Millisecond, true)
	observe(1, time.Hour, true)
	want(500*time.Millisecond, 500*time.Millisecond)
	observe(100, 480*time.Millisecond, true)
	want(590*time.Millisecond, 600*time.Millisecond)
	observe(100, 500*time.Millisecond, false) // that was not enough
	want(920*time.Millisecond, 940*time.Millisecond)
	observe(100, time.Second, true)
	want(time.Second, time.Second)
	observe(100, 100*time.Millisecond, true)
	want(500*time.Millisecond, 500*time.Millisecond)
}

// Whoever joins a mint that has a place takes it from nobody, and least of all
// from itself.
func TestJoiningAFullQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := func() time.Duration { return clock.Now().Mono() }
		const timeout = 2*time.Second + 2*timerSlack // ten places
		q := newQueue(10, 1, timeout, now)
		q.take()
		var places []*place
		for range 10 {
			places = append(places, q.enter("a", now()+timeout))
		}
		for _, p := range places {
			q.join(p, "b")
			q.join(p, "c")
		}
		// Others wait for each of them, so none makes room.
		if late := q.enter("d", now()+timeout); !late.done || late.granted {
			t.Error("an eleventh place")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		for i, p := range places {
			if <-p.decided; !p.granted {
				t.Errorf("place %d has given way", i)
			}
		}
		if entries, lines, timer := q.size(); entries != 0 || lines != 0 || timer || q.places != 0 {
			t.Error("the queue is not empty")
		}
	})
}

// Whatever comes in whatever order: every place is decided once, and in the end
// nothing is left.
func TestQueueAtRandom(t *testing.T) {
	for seed := range uint64(300) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, uint64(time.Now().UnixNano()))) //nolint:gosec // any will do
			now := func() time.Duration { return clock.Now().Mono() }
			timeout := time.Duration(100+random.IntN(2000)) * time.Millisecond
			q := newQueue(1+float64(random.IntN(50)), 1+random.IntN(5), timeout, now)
			client := func() string { return string(rune('a' + random.IntN(4))) }
			var places []*place
			waiting := make(map[*place]map[string]bool)
			for range 300 {
				var p *place
				if len(places) > 0 {
					p = places[random.IntN(len(places))]
				}
				switch what := random.IntN(10); {
				case what < 4 || p == nil:
					c := client()
					p = q.enter(c, now()+timeout)
					places = append(places, p)
					waiting[p] = map[string]bool{c: true}
				case what < 6:
					c := client()
					q.join(p, c)
					waiting[p][c] = true
				case what < 7:
					for c := range waiting[p] {
						q.leave(p, c)
						break
					}
				case what < 8:
					q.expire(p)
				case what < 9 && q.take():
					if random.IntN(2) == 0 {
						q.giveBack()
					}
				default:
					q.observe(time.Duration(random.IntN(int(timeout))), random.IntN(5) > 0)
					time.Sleep(time.Duration(random.IntN(200)) * time.Millisecond)
				}
				q.mu.Lock()
				entries, standing := 0, make(map[*place]bool)
				for e := q.turns.Front(); e != nil; e = e.Next() {
					l := e.Value.(*line)
					entries += l.places.Len()
					if l.places.Len() == 0 || q.lines[l.client] != e {
						t.Fatalf("seed %d: the line of %s is lost", seed, l.client)
					}
					for e := l.places.Front(); e != nil; e = e.Next() {
						if standing[e.Value.(*place)] = true; e.Value.(*place).done {
							t.Fatalf("seed %d: a place that is decided stands in a line", seed)
						}
					}
				}
				if entries != q.entries || len(standing) != q.places || len(q.lines) != q.turns.Len() || q.places > max(1, q.capacity())+1 && q.usual == 0 {
					t.Fatalf("seed %d: %d entries, counted %d; %d places, counted %d", seed, entries, q.entries, len(standing), q.places)
				}
				q.mu.Unlock()
			}
			time.Sleep(2 * timeout)
			for _, p := range places {
				q.expire(p)
				<-p.decided
			}
			if entries, lines, timer := q.size(); entries != 0 || lines != 0 || timer || q.places != 0 {
				t.Errorf("seed %d: %d entries and %d lines are left", seed, entries, lines)
			}
		})
	}
}

// What is left of the time when a turn comes is at least half of timeout.
func TestTurnsThatComeTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := func() time.Duration { return clock.Now().Mono() }
		q := newQueue(1, 1, 4*time.Second, now)
		q.take()
		late := q.enter("a", now()+2*time.Second) // half of timeout is left now
		if <-late.decided; late.granted || late.wait <= 0 {
			t.Errorf("granted %v, wait %s", late.granted, late.wait)
		}
		// Others overtake it, and it expires.
		p := q.enter("a", now()+4*time.Second)
		q.enter("a", now()+4*time.Second)
		q.setTokens(-5)
		time.Sleep(2 * time.Second)
		q.expire(p)
		if <-p.decided; p.granted {
			t.Error("granted")
		}
	})
}

func TestTurnsThatAreNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1, 1, 5*time.Second, func() time.Duration { return clock.Now().Mono() })
		if !q.take() || q.take() || q.takeSpare() {
			t.Error("a burst of one is not one")
		}
		p := q.enter("a", clock.Now().Mono()+5*time.Second)
		q.giveBack()
		if <-p.decided; !p.granted {
			t.Error("a turn that was given back is not used")
		}
		q.giveBack()
		q.giveBack() // never more than the burst
		if !q.take() || q.take() {
			t.Error("more than the burst")
		}
		// What is charged is paid for by those who come later.
		q.charge()
		start := time.Now()
		p = q.enter("a", clock.Now().Mono()+5*time.Second)
		if <-p.decided; !p.granted || time.Since(start) != 2*time.Second {
			t.Errorf("granted %v after %s", p.granted, time.Since(start))
		}
	})
}
