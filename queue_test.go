package viewersession

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

// from is the context of a request from this address.
func from(ctx context.Context, address string) context.Context {
	return context.WithValue(ctx, caddyhttp.VarsCtxKey, map[string]any{caddyhttp.ClientIPVarKey: address})
}

// size returns how much there is in the queue.
func (q *queue) size() (entries, lines int, timer bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.entries, len(q.lines) + q.turns.Len(), q.timer != nil
}

// setRate changes the limits.
func (q *queue) setRate(rate float64, burst int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.rate, q.burst, q.tokens = rate, float64(burst), float64(burst)
}

// setTokens lets the queue have so many turns now.
func (q *queue) setTokens(tokens float64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.refill()
	q.tokens = tokens
}

// overload asks for new documents at a steady rate, and returns how many were
// minted; everything but a token and a 503 is an error.
func (p *poolTest) overload(perSecond float64, during time.Duration) (minted int) {
	p.t.Helper()
	var served atomic.Int32
	var wg sync.WaitGroup
	start := time.Now()
	for i := 0; time.Since(start) < during; i++ {
		wg.Go(func() {
			asked := time.Now()
			_, _, f := p.get(p.t.Context(), testAsk(fmt.Sprint("made-up-", start.UnixNano(), "-", i)))
			switch {
			case f == nil:
				served.Add(1)
			case f.reason != reasonRateLimited || f.status() != 503:
				p.t.Errorf("%s: %v", f.reason, f)
			case clock.Now().Until(f.retryAt) < time.Second:
				p.t.Errorf("retry after %s", clock.Now().Until(f.retryAt))
			}
			if took := time.Since(asked); took > p.settings.timeout {
				p.t.Errorf("took %s", took)
			}
		})
		time.Sleep(time.Duration(float64(time.Second) / perSecond))
	}
	wg.Wait()
	return int(served.Load())
}

// Whatever is asked of it, the gateway goes on minting at mint_rate.
func TestMintsGoOnUnderOverload(t *testing.T) {
	for _, test := range []struct {
		rate    float64
		burst   int
		timeout time.Duration
		api     time.Duration // how long it takes
	}{
		{20, 20, time.Second, 150 * time.Millisecond},
		{100, 1000, 5 * time.Second, 150 * time.Millisecond},
		{100, 1, 5 * time.Second, 10 * time.Millisecond},
		{1, 1, 5 * time.Second, 150 * time.Millisecond},
		{20, 20, time.Second, 600 * time.Millisecond}, // more than half of timeout
		{20, 20, time.Second, 900 * time.Millisecond},
	} {
		for _, times := range []float64{1.3, 5, 50} {
			t.Run(fmt.Sprintf("%g %d, %s, API %s, %g times", test.rate, test.burst, test.timeout, test.api, times), func(t *testing.T) {
				withPool(t, func(s *poolSettings) { s.rate, s.burst, s.timeout = test.rate, test.burst, test.timeout }, func(t *testing.T, p *poolTest) {
					p.api.delay = test.api
					for p.queue.take() { // the burst is not what is measured
					}
					// The API is found out to be slow by mints that fail for it.
					for range 50 {
						p.queue.observe(test.api, true)
					}
					during := min(20*time.Second, time.Duration(20_000/(test.rate*times)*float64(time.Second))+5*time.Second)
					minted := p.overload(test.rate*times, during)
					if want := test.rate * during.Seconds(); float64(minted) < 0.95*want || float64(minted) > want+test.rate*test.timeout.Seconds()+1 {
						t.Errorf("%d tokens in %s, want %.0f", minted, during, want)
					}
					if _, cause := p.backoff.heldUntil(p.now()); cause != nil {
						t.Errorf("held back: %v", cause)
					}
				})
			})
		}
	}
}

// An API that needs more than half of timeout is found out, and then given it.
func TestOverloadOfASlowAPI(t *testing.T) {
	withPool(t, func(s *poolSettings) { s.rate, s.burst, s.timeout = 20, 20, time.Second }, func(t *testing.T, p *poolTest) {
		p.api.delay = 700 * time.Millisecond
		var wg sync.WaitGroup
		var minted, timedOut atomic.Int32
		for i := range 2000 { // 100 a second
			wg.Go(func() {
				_, _, f := p.get(t.Context(), testAsk(fmt.Sprint("doc", i)))
				switch {
				case f == nil:
					minted.Add(1)
				case f.reason == reasonTimeout:
					timedOut.Add(1)
				case f.reason != reasonRateLimited:
					t.Errorf("%s: %v", f.reason, f)
				}
			})
			time.Sleep(10 * time.Millisecond)
		}
		wg.Wait()
		if minted.Load() < 380 || timedOut.Load() > 20 {
			t.Errorf("%d minted, %d timed out", minted.Load(), timedOut.Load())
		}
		if _, cause := p.backoff.heldUntil(p.now()); cause != nil {
			t.Errorf("held back: %v", cause)
		}
	})
}

// A mint that had to queue has less time than the API is entitled to. If that is
// not enough, it says nothing of the API, and holds nobody back.
func TestTimeInTheQueueIsNotTheAPIs(t *testing.T) {
	withPool(t, func(s *poolSettings) { s.rate, s.burst, s.timeout = 2, 3, 4*time.Second }, func(t *testing.T, p *poolTest) {
		p.queue.setTokens(0)
		p.api.delay = 3600 * time.Millisecond
		var wg sync.WaitGroup
		for i := range 3 { // which have their turns after 0.5, 1 and 1.5 seconds
			wg.Go(func() {
				if _, _, f := p.get(t.Context(), testAsk(fmt.Sprint("doc", i))); f == nil || f.reason != reasonTimeout {
					t.Errorf("got %v, want a time-out", f)
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		if _, cause := p.backoff.heldUntil(p.now()); cause != nil {
			t.Errorf("held back: %v", cause)
		}
		p.queue.setTokens(1)
		p.want("another", resultMinted)
	})
}

// One client with a thousand made-up ids does not make another one wait.
func TestClientsTakeTurns(t *testing.T) {
	for name, others := range map[string][2]string{
		"IPv4":                 {"192.0.2.1", "192.0.2.2"},
		"IPv6":                 {"2001:db8:0:1::1", "2001:db8:0:2::1"},
		"a user, one address":  {"192.0.2.1", "192.0.2.1"},
		"no address, one user": {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			withPool(t, func(s *poolSettings) { s.rate, s.burst, s.timeout = 10, 1, 5*time.Second }, func(t *testing.T, p *poolTest) {
				ctx, cancel := context.WithCancel(t.Context())
				for i := range 1000 {
					go func() { _, _, _ = p.get(from(ctx, others[0]), testAsk(fmt.Sprint("made-up", i))) }()
				}
				synctest.Wait()
				honest := testAsk("doc")
				if others[0] == others[1] {
					honest.userID = "ann"
				}
				start := time.Now()
				if _, result, f := p.get(from(t.Context(), others[1]), honest); f != nil || result != resultMinted {
					t.Fatalf("got %s, %v", result, f)
				}
				if turns := time.Since(start) / (100 * time.Millisecond); turns > 2 {
					t.Errorf("waited for %d turns", turns)
				}
				cancel()
			})
		})
	}
}

// All addresses that one customer gets are one client.
func TestClientOfARequest(t *testing.T) {
	client := func(address, user string) string { return clientOf(from(t.Context(), address), user) }
	same := [][2]string{
		{client("2001:db8:1:2::1", ""), client("2001:db8:1:2:ffff::9", "")},
		{client("192.0.2.1", ""), client("::ffff:192.0.2.1", "")},
		{client("fe80::1%eth0", ""), client("fe80::1%eth1", "")},
		{clientOf(t.Context(), ""), client("", "")},
	}
	for _, pair := range same {
		if pair[0] != pair[1] || pair[0] == "" {
			t.Errorf("%q and %q", pair[0], pair[1])
		}
	}
	other := [][2]string{
		{client("2001:db8:1:2::1", ""), client("2001:db8:1:3::1", "")},
		{client("192.0.2.1", ""), client("192.0.2.2", "")},
		{client("192.0.2.1", "ann"), client("192.0.2.1", "bob")},
	}
	for _, pair := range other {
		if pair[0] == pair[1] {
			t.Errorf("%q twice", pair[0])
		}
	}
}

// Refusals leave no debt: after a flood of any length the next request has the
// next turn.
func TestFloodLeavesNoDebt(t *testing.T) {
	for _, seconds := range []int{1, 6, 60} {
		withPool(t, func(s *poolSettings) { s.rate, s.burst = 1, 1 }, func(t *testing.T, p *poolTest) {
			ctx, cancel := context.WithCancel(t.Context())
			for i := range 100 * seconds {
				go func() { _, _, _ = p.get(ctx, testAsk(fmt.Sprint("made-up", i))) }()
				time.Sleep(10 * time.Millisecond)
			}
			cancel()
			synctest.Wait()
			start := time.Now()
			p.want("doc", resultMinted)
			if took := time.Since(start); took > time.Second {
				t.Errorf("after %d s of flood an honest request waited for %s", seconds, took)
			}
		})
	}
}

// Whoever has given up is not minted for.
func TestThoseWhoLeftAreNotMintedFor(t *testing.T) {
	withPool(t, func(s *poolSettings) { s.rate, s.burst = 100, 1 }, func(t *testing.T, p *poolTest) {
		p.want("first", resultMinted)
		ctx, cancel := context.WithCancel(t.Context())
		for i := range 200 {
			go func() { _, _, _ = p.get(ctx, testAsk(fmt.Sprint("doc", i))) }()
		}
		// Two wait for one of them, and one stays.
		stays := make(chan *failure)
		go func() {
			_, _, f := p.get(t.Context(), testAsk("doc7"))
			stays <- f
		}()
		synctest.Wait()
		p.wantMints(1)
		cancel()
		if f := <-stays; f != nil {
			t.Error(f)
		}
		time.Sleep(p.settings.timeout)
		p.wantMints(2)
		p.flights.mu.Lock()
		defer p.flights.mu.Unlock()
		if entries, lines, timer := p.queue.size(); entries != 0 || lines != 0 || timer || len(p.flights.byName) != 0 {
			t.Errorf("%d entries, %d lines and %d flights are left", entries, lines, len(p.flights.byName))
		}
	})
}

// A mint that has been sent is finished and kept.
func TestSentMintIsKept(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.delay = time.Second
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _, _, _ = p.get(ctx, testAsk("doc")) }()
		synctest.Wait()
		cancel()
		time.Sleep(2 * time.Second)
		p.want("doc", resultHit)
	})
}

// A document that several wait for is served at the first of their turns.
func TestSharedDocumentIsServedAtTheFirstTurn(t *testing.T) {
	withPool(t, func(s *poolSettings) { s.rate, s.burst = 10, 1 }, func(t *testing.T, p *poolTest) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for i := range 20 {
			go func() { _, _, _ = p.get(from(ctx, "192.0.2.1"), testAsk(fmt.Sprint("made-up", i))) }()
			synctest.Wait()
		}
		// The last in the long line is wanted by another client, too.
		start := time.Now()
		if _, _, f := p.get(from(t.Context(), "192.0.2.2"), testAsk("made-up19")); f != nil {
			t.Fatal(f)
		}
		if took := time.Since(start); took > 200*time.Millisecond {
			t.Errorf("took %s", took)
		}
		if got, _, _ := p.queue.size(); got > 18 {
			t.Errorf("%d entries: the document stands in the other line still", got)
		}
	})
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

// What has a place keeps it when a mint turns out to be slow.
func TestSlowMintDoesNotEmptyTheQueue(t *testing.T) {
	withPool(t, func(s *poolSettings) { s.rate, s.burst, s.timeout = 10, 1, 5*time.Second }, func(t *testing.T, p *poolTest) {
		p.want("first", resultMinted)
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() { p.asked(fmt.Sprint("doc", i), resultMinted) })
		}
		synctest.Wait()
		for range 100 {
			p.queue.observe(4*time.Second, true)
		}
		wg.Wait()
	})
}

// Many who wait for one document take one turn, and no more room than that.
func TestPopularDocumentTakesOnePlace(t *testing.T) {
	withPool(t, func(s *poolSettings) { s.rate, s.burst, s.timeout = 10, 1, 5*time.Second }, func(t *testing.T, p *poolTest) {
		p.want("first", resultMinted)
		var wg sync.WaitGroup
		for i := range 500 {
			wg.Go(func() {
				if _, _, f := p.get(from(t.Context(), fmt.Sprintf("192.0.%d.%d", i/250, i%250)), testAsk("popular")); f != nil {
					t.Error(f)
				}
			})
		}
		synctest.Wait()
		start := time.Now()
		if _, _, f := p.get(from(t.Context(), "198.51.100.1"), testAsk("another")); f != nil || time.Since(start) > 200*time.Millisecond {
			t.Errorf("after %s: %v", time.Since(start), f)
		}
		wg.Wait()
		p.wantMints(3)
	})
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

// A route that promises more than another must not get what does for that one.
func TestJoinedFlightKeepsMinRemaining(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.want("doc", resultMinted)
		time.Sleep(50 * time.Minute) // ten minutes are left
		content, demanding := testAsk("doc"), testAsk("doc")
		content.minRemaining, demanding.minRemaining = time.Minute, 30*time.Minute
		old := p.cache.get(p.account.Load().cacheKey(string(content.appendKey(nil))))
		release := make(chan struct{})
		name := old.key()[len(account{}):]
		p.flights.join(name, "another", func(f *flight) {
			<-release
			f.token = old // good enough for the one who looked
		})
		var wg sync.WaitGroup
		wg.Go(func() {
			tok, _, f := p.get(t.Context(), demanding)
			if f != nil || tok == old {
				t.Errorf("%v, a token that is good for ten minutes: %v", f, tok == old)
			}
		})
		synctest.Wait()
		close(release)
		wg.Wait()
		p.wantMints(2)
	})
}

// After a rotation the API that works with the new key is believed when it
// refuses a document: a former key's token would say what is not true any more.
func TestFormerTokenDoesNotStandInForARefusal(t *testing.T) {
	for status, want := range map[int]reason{422: reasonRejected, 404: reasonRejected, 409: reasonRejected} {
		withRotatedKey(t, func(t *testing.T, p *poolTest, old *token) {
			p.want("proves", resultMinted) // the new key works
			p.api.set(failing(status))
			for range 3 {
				p.wantFailure("doc", want)
				time.Sleep(refusalMemory)
			}
		})
	}
	withRotatedKey(t, func(t *testing.T, p *poolTest, old *token) {
		p.want("proves", resultMinted)
		p.api.set(granting(`{"permissions": ["write"]}`))
		p.wantFailure("doc", reasonOverGranted)
		// And the honest case beside it.
		p.api.set(failing(503))
		time.Sleep(refusalMemory)
		if got := p.want("doc", resultStale); got != old {
			t.Error("another token")
		}
	})
}
