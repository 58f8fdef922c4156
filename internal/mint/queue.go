package mint

import (
	"container/list"
	"math"
	"sync"
	"time"
)

const (
	// maxPlaces bounds the queue, whatever mint_rate and timeout are.
	maxPlaces = 10_000

	// timerSlack is how late a timer may be: a place is granted if its turn comes
	// that much before it is too late, and so much of mint_rate is caught up on
	// while somebody waits.
	timerSlack = 20 * time.Millisecond
)

// queue shares mint_rate out among those who want to mint. It is a token bucket
// with a line for each client in front, and the clients take turns: one that
// asks for a thousand documents does not make the others wait.
//
// A place is granted only if enough time is left for the mint when its turn
// comes. A refusal costs nothing that a later request would have to pay for.
// Moments are those of the monotonic clock. All methods may be called at once.
type queue struct {
	rate, burst float64 // rate is infinite for no limit
	timeout     time.Duration
	now         func() time.Duration

	mu      sync.Mutex
	tokens  float64
	counted time.Duration // when tokens was right
	lines   map[string]*list.Element
	turns   *list.List // of *line, in the order of their turns; none is empty
	places  int        // that are not decided
	entries int        // in all lines; a place has one for each client
	timer   *time.Timer
	usual   time.Duration // how long mints take
}

// line holds one client's places, the oldest first.
type line struct {
	client string
	places list.List // of *place
}

// place is a mint's place in the lines of all clients that wait for it. It has its
// turn at the first of theirs. It is guarded by the queue's lock.
type place struct {
	deadline time.Duration // the mint's
	entries  map[string]*list.Element

	decided chan struct{} // closed when granted and wait are final
	granted bool
	wait    time.Duration // if it was refused: when there is room again
	done    bool          // whether decided is closed
}

func newQueue(rate float64, burst int, timeout time.Duration, now func() time.Duration) *queue {
	return &queue{
		rate: rate, burst: float64(burst), timeout: timeout, now: now,
		tokens: float64(burst), counted: now(),
		lines: make(map[string]*list.Element), turns: list.New(),
	}
}

// take grants a turn if there is one for which nobody waits.
func (q *queue) take() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.takeAbove(1)
}

// takeSpare is take for what can wait: it leaves a quarter of the burst to others.
func (q *queue) takeSpare() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.takeAbove(max(1, q.burst/4))
}

func (q *queue) takeAbove(least float64) bool {
	q.refill()
	if q.entries > 0 || q.tokens < least-rounding {
		return false
	}
	q.tokens--
	return true
}

// giveBack returns a turn that was not used.
func (q *queue) giveBack() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.refill()
	q.tokens++ // refill keeps it within the burst
	q.dispatch()
}

// charge counts a request to the API beyond the one that had its turn.
func (q *queue) charge() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.refill()
	q.tokens--
}

// enter gives a mint with this deadline a place in the client's line, or
// refuses it at once. The outcome is known when decided is closed.
func (q *queue) enter(client string, deadline time.Duration) *place {
	q.mu.Lock()
	defer q.mu.Unlock()
	p := &place{deadline: deadline, entries: make(map[string]*list.Element), decided: make(chan struct{})}
	q.refill()
	q.admit(p, client)
	q.dispatch()
	return p
}

// join gives another client that waits for the same mint an entry in its line. If
// there is no room for it, the client waits for the others' turns.
func (q *queue) join(p *place, client string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !p.done && p.entries[client] == nil && q.entries < maxPlaces {
		q.line(p, client)
	}
}

// leave takes a client's entry away. Without any the place is given up, and
// counts as refused.
func (q *queue) leave(p *place, client string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch e := p.entries[client]; {
	case e == nil:
	case len(p.entries) == 1:
		q.refuse(p)
	default:
		q.remove(p, client, e)
	}
}

// expire refuses a place whose turn has not come in time.
func (q *queue) expire(p *place) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.refuse(p)
}

// limit is how long a place with this deadline may wait.
func (q *queue) limit(deadline time.Duration) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	return deadline - q.timeout/2 - q.now()
}

// observe learns how long mints take, from one that took this long, or that had
// no more time than this.
func (q *queue) observe(took time.Duration, enough bool) {
	if !enough {
		took += took / 2
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.usual += (min(took, q.timeout) - q.usual) / 8
}

// reserve is what should be left of timeout when a turn comes: half of it, or more
// if mints usually need more.
func (q *queue) reserve() time.Duration {
	return min(q.timeout, max(q.timeout/2, q.usual+q.usual/4))
}

// admit gives a new place an entry in the client's line, if there is room. The
// lock is held.
func (q *queue) admit(p *place, client string) {
	own, lines := 0, q.turns.Len()
	if turn := q.lines[client]; turn != nil {
		own = turn.Value.(*line).places.Len()
	} else {
		lines++
	}
	// Before this one, each line has as many turns as this client has places, at most.
	ahead := min(q.places, (own+1)*lines-1)
	wait := time.Duration(math.Ceil(max(0, float64(ahead+1)-q.tokens) / q.rate * float64(time.Second)))
	spare := p.deadline - q.now() - q.reserve() - timerSlack
	if wait > spare {
		p.wait = wait - spare
		q.decide(p, false)
		return
	}
	if q.places >= q.capacity() && !q.makeRoom(own) {
		p.wait = q.turn()
		q.decide(p, false)
		return
	}
	q.places++
	q.line(p, client)
}

// line adds an entry for the place to the client's line. The lock is held.
func (q *queue) line(p *place, client string) {
	turn := q.lines[client]
	if turn == nil {
		turn = q.turns.PushBack(&line{client: client})
		q.lines[client] = turn
	}
	p.entries[client] = turn.Value.(*line).places.PushBack(p)
	q.entries++
}

// turn is how long it takes from one turn to the next.
func (q *queue) turn() time.Duration { return time.Duration(float64(time.Second) / q.rate) }

// capacity is how many places can have their turn in time.
func (q *queue) capacity() int {
	return int(max(1, min(maxPlaces, q.rate*(q.timeout-q.reserve()-timerSlack).Seconds()+rounding)))
}

// makeRoom refuses the newest place of the longest line, if that is longer than
// own. A place that other clients wait for as well does not give way. The lock is
// held.
func (q *queue) makeRoom(own int) bool {
	var longest *line
	for e := q.turns.Front(); e != nil; e = e.Next() {
		if l := e.Value.(*line); l.places.Len() > own && (longest == nil || l.places.Len() > longest.places.Len()) {
			longest = l
		}
	}
	if longest == nil {
		return false
	}
	for e := longest.places.Back(); e != nil; e = e.Prev() {
		if p := e.Value.(*place); len(p.entries) == 1 {
			q.refuse(p)
			return true
		}
	}
	return false
}

// remove takes an entry out of its line. The lock is held.
func (q *queue) remove(p *place, client string, e *list.Element) {
	turn := q.lines[client]
	l := turn.Value.(*line)
	l.places.Remove(e)
	delete(p.entries, client)
	q.entries--
	if l.places.Len() == 0 {
		q.turns.Remove(turn)
		delete(q.lines, client)
	}
}

// refuse decides against the place. The lock is held.
func (q *queue) refuse(p *place) {
	if !p.done {
		p.wait = time.Duration(float64(q.places) / q.rate * float64(time.Second))
		q.decide(p, false)
	}
}

// decide takes the place out of all lines and tells those who wait. It is done
// once. The lock is held.
func (q *queue) decide(p *place, granted bool) {
	if len(p.entries) > 0 {
		q.places--
	}
	for client, e := range p.entries {
		q.remove(p, client, e)
	}
	p.granted, p.done = granted, true
	close(p.decided)
}

// refill counts the turns that have come up since the last call. The lock is held.
func (q *queue) refill() {
	now := q.now()
	passed := max(0, now-q.counted)
	q.counted = now
	if math.IsInf(q.rate, 1) {
		q.tokens = q.rate
		return
	}
	most := q.burst
	if q.entries > 0 {
		most = max(most, 1+q.rate*timerSlack.Seconds())
	}
	q.tokens = min(most, q.tokens+q.rate*passed.Seconds())
}

// rounding is what adding up parts of tokens may lose.
const rounding = 1e-6

// dispatch gives turns to those who wait, as far as there are any, and sees that
// it is called again when there are more. The lock is held.
func (q *queue) dispatch() {
	for q.entries > 0 && q.tokens >= 1-rounding {
		turn := q.turns.Front()
		l := turn.Value.(*line)
		p := l.places.Front().Value.(*place)
		q.turns.MoveToBack(turn)
		if p.deadline-q.now() < q.timeout/2 {
			q.refuse(p)
			continue
		}
		q.tokens--
		q.decide(p, true)
	}
	if q.entries == 0 {
		if q.timer != nil {
			q.timer.Stop()
			q.timer = nil
		}
		return
	}
	if q.timer == nil {
		wait := time.Duration(math.Ceil((1 - q.tokens) / q.rate * float64(time.Second)))
		q.timer = time.AfterFunc(wait, func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			q.timer = nil
			q.refill()
			q.dispatch()
		})
	}
}
