package viewersession

import (
	"container/list"
	"fmt"
	"hash/maphash"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

const (
	// tokenOverhead is what a cached token costs in addition to its bytes: the
	// struct and its share of ristretto's maps and access sketch.
	tokenOverhead = 320

	// typicalTokenBytes sizes the access sketch, which wants five to ten
	// counters for each token that fits.
	typicalTokenBytes = 1 << 10

	// maxCounters bounds the access sketch's memory, which is taken at once, to
	// 512 MiB; it is reached with a cache of 13 GiB.
	maxCounters = 1 << 27

	// lookUpsCounted is how many look-ups ristretto's policy learns of at a
	// time. With the 64 that its docs suggest, waking the policy's goroutine
	// takes a good part of each look-up.
	lookUpsCounted = 512

	// sweepInterval is how long expired tokens stay at most.
	sweepInterval = time.Minute

	// overflowShare is the part of the cache that holds tokens which ristretto
	// turned away.
	overflowShare = 8
)

// tokenCache holds tokens within a bound of bytes.
//
// Ristretto keeps what is used often, which protects the documents that people
// read from a scanner's thousands of made-up ids. Two guarantees are added here:
// a stored token is compared with the whole key, since ristretto only knows a
// hash of it; and a token that the admission policy turns away stays in a small
// first-in-first-out area, since each look-up would be a mint otherwise.
// Ristretto's ttl is not used: it would read the clock on each look-up and keep
// a second index, for what every token knows itself.
type tokenCache struct {
	seed maphash.Seed

	// mu is held for reading while ristretto is used: ristretto panics when
	// it is used while it closes, and requests outlive the config they began in.
	mu     sync.RWMutex
	closed bool
	main   *ristretto.Cache[uint64, *token]
	count  atomic.Int64 // of tokens in main

	// storing is held for reading while a token is stored, and for writing
	// while one is deleted that might have been replaced, or a purge begins.
	// mu is never taken while it is held.
	storing sync.RWMutex

	closing sync.Once
	done    chan struct{} // closed before the cache is

	now        func() clock.Time
	turnedAway *atomic.Uint64 // counts tokens that ristretto turned away

	overflow overflow

	purges purgeLog
}

// newTokenCache returns a cache for at most maxBytes. Goroutines run for it
// until close is called.
func newTokenCache(maxBytes int64, turnedAway *atomic.Uint64, now func() clock.Time) (*tokenCache, error) {
	forOverflow := maxBytes / overflowShare
	c := &tokenCache{
		seed:       maphash.MakeSeed(),
		done:       make(chan struct{}),
		turnedAway: turnedAway,
		now:        now,
		overflow:   overflow{maxBytes: forOverflow, tokens: make(map[string]*list.Element), order: list.New()},
	}
	var err error
	c.main, err = ristretto.NewCache(&ristretto.Config[uint64, *token]{
		NumCounters:        countersFor(maxBytes),
		MaxCost:            maxBytes - forOverflow,
		BufferItems:        lookUpsCounted,
		KeyToHash:          func(hash uint64) (uint64, uint64) { return hash, 0 },
		IgnoreInternalCost: true, // it is part of tokenOverhead
		OnExit: func(t *token) {
			if t != nil {
				c.count.Add(-1)
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("token cache: %w", err)
	}
	go c.sweepUntilClosed()
	return c, nil
}

// countersFor is the size of the access sketch. Ristretto rounds up to a power
// of two, so that anything else would take up to twice the memory.
func countersFor(maxBytes int64) int64 {
	wanted := uint64(min(max(1024, 10*maxBytes/typicalTokenBytes), maxCounters)) //nolint:gosec // positive
	return 1 << (bits.Len64(wanted) - 1)
}

// get returns the token stored under exactly this key, or nil. It may have
// expired; see token.freshness.
func (c *tokenCache) get(key []byte) *token {
	c.mu.RLock()
	var t *token
	if !c.closed {
		t, _ = c.main.Get(maphash.Bytes(c.seed, key))
	}
	c.mu.RUnlock()
	if t != nil && t.key() == string(key) {
		return t
	}
	return c.overflow.get(key)
}

// put stores a token and returns when look-ups can see it. One that has expired
// or has been purged since its minting began is not stored.
func (c *tokenCache) put(t *token, now clock.Time) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	c.storing.RLock()
	defer c.storing.RUnlock()
	if c.closed || t.freshness(now, 0) == expired || c.purges.purged(t) {
		return
	}
	hash := maphash.String(c.seed, t.key())
	if c.main.Set(hash, t, t.cost()) {
		c.count.Add(1) // until it leaves, if only because it was turned away
	}
	// Set works in the background. Without waiting, the requests right after
	// this one would miss, and a second Set of a new key would be lost.
	c.main.Wait()
	if stored, _ := c.main.Get(hash); stored == t {
		c.overflow.remove(t.key())
		return
	}
	c.turnedAway.Add(1)
	if t.cost() <= c.overflow.maxBytes/overflowShare { // one must not push out all the others
		c.overflow.put(t)
	}
}

// purge forgets the tokens of one document, or all of them if documentID is
// empty, and returns how many there were.
func (c *tokenCache) purge(documentID string, now clock.Time) int {
	// A put looks at the purges while it holds storing: its token has been
	// stored by now and is found below, or will not be stored.
	c.storing.Lock()
	c.purges.add(documentID, now.Mono())
	c.storing.Unlock()
	return c.drop(c.purges.purged, now)
}

// drop deletes the tokens that are unwanted, and returns how many of them had
// not expired. It gives up when the cache is about to close.
func (c *tokenCache) drop(unwanted func(*token) bool, now clock.Time) (dropped int) {
	count := func(t *token) {
		if t.freshness(now, 0) != expired {
			dropped++
		}
	}
	c.overflow.drop(unwanted, count)

	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return dropped
	}
	var found []*token
	c.main.IterValues(func(t *token) (stop bool) {
		if unwanted(t) {
			found = append(found, t)
		}
		return c.isClosing()
	})
	for _, t := range found {
		if c.isClosing() {
			return dropped
		}
		hash := maphash.String(c.seed, t.key())
		c.storing.Lock()
		if stored, _ := c.main.Get(hash); stored == t { // and not its successor
			c.main.Del(hash)
			count(t)
		}
		c.storing.Unlock()
	}
	c.main.Wait()
	return dropped
}

// sweepUntilClosed takes out tokens that have expired.
func (c *tokenCache) sweepUntilClosed() {
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			now := c.now()
			c.drop(func(t *token) bool { return t.freshness(now, 0) == expired }, now)
		case <-c.done:
			return
		}
	}
}

// size returns how many tokens there are, and the memory that they take.
func (c *tokenCache) size() (tokens, bytes int64) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if !c.closed {
		tokens, bytes = c.count.Load(), c.main.MaxCost()-c.main.RemainingCost()
	}
	c.overflow.mu.Lock()
	defer c.overflow.mu.Unlock()
	return tokens + int64(len(c.overflow.tokens)), bytes + c.overflow.bytes
}

// close ends the cache's goroutines. Nothing is stored any more.
func (c *tokenCache) close() {
	c.closing.Do(func() { close(c.done) }) // so that nobody waits for a sweep
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed = true
		c.main.Close()
	}
}

func (c *tokenCache) isClosing() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// cost is the memory that the cache accounts for the token.
func (t *token) cost() int64 { return int64(len(t.text) + tokenOverhead) }

// overflow keeps the latest tokens within a bound of bytes.
type overflow struct {
	maxBytes int64
	count    atomic.Int64 // lets look-ups pass without the lock while there are none

	mu     sync.Mutex
	tokens map[string]*list.Element
	order  *list.List // of *token, oldest first
	bytes  int64
}

func (o *overflow) get(key []byte) *token {
	if o.count.Load() == 0 {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if e, ok := o.tokens[string(key)]; ok {
		return e.Value.(*token)
	}
	return nil
}

func (o *overflow) put(t *token) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.removeLocked(o.tokens[t.key()])
	o.tokens[t.key()] = o.order.PushBack(t)
	o.bytes += t.cost()
	for e := o.order.Front(); e != nil && o.bytes > o.maxBytes; e = o.order.Front() {
		o.removeLocked(e)
	}
	o.count.Store(int64(len(o.tokens)))
}

// drop deletes the tokens that are unwanted, and tells of each.
func (o *overflow) drop(unwanted func(*token) bool, dropped func(*token)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.tokens {
		if t := e.Value.(*token); unwanted(t) {
			o.removeLocked(e)
			dropped(t)
		}
	}
	o.count.Store(int64(len(o.tokens)))
}

func (o *overflow) remove(key string) {
	if o.count.Load() == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.removeLocked(o.tokens[key])
	o.count.Store(int64(len(o.tokens)))
}

func (o *overflow) removeLocked(e *list.Element) {
	if e == nil {
		return
	}
	t := o.order.Remove(e).(*token)
	delete(o.tokens, t.key())
	o.bytes -= t.cost()
}
