package viewersession

import (
	"container/list"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"
)

const (
	// tokenOverhead is what a cached token costs beside its bytes: the token
	// itself, its place in ristretto's maps and in the access sketch.
	tokenOverhead = 320

	// typicalTokenBytes sizes the access sketch, which wants ten counters for
	// each token that fits.
	typicalTokenBytes = 1 << 10

	// maxCounters bounds the access sketch's memory, which is taken at once, to
	// about 400 MB; it is reached with a cache of 13 GiB.
	maxCounters = 1 << 27

	// recentShare is the part of the cache that holds tokens which ristretto
	// turned away.
	recentShare = 8
)

// tokenCache holds tokens within a bound of bytes.
//
// Ristretto decides by frequency whom to keep, which protects the documents
// that people read from a scanner's thousands of made-up ids. Two things it
// does not promise are added here: a stored token is compared with the whole
// key, since ristretto itself only knows a hash of it; and a token that the
// admission policy turns away stays in a small first-in-first-out area, since
// each of its look-ups would be a mint otherwise.
type tokenCache struct {
	seed maphash.Seed

	// mu is held for reading while ristretto is used: ristretto panics when
	// it is used while it closes, and requests outlive the config they began in.
	mu     sync.RWMutex
	closed bool
	main   *ristretto.Cache[uint64, *token]
	count  atomic.Int64 // of tokens in main

	rejected *atomic.Uint64 // counts tokens that ristretto turned away

	recent recentTokens

	purges purgeLog
}

// newTokenCache returns a cache for at most maxBytes. It runs a goroutine
// until close is called.
func newTokenCache(maxBytes int64, rejected *atomic.Uint64) (*tokenCache, error) {
	forRecent := maxBytes / recentShare
	c := &tokenCache{
		seed:     maphash.MakeSeed(),
		rejected: rejected,
		recent:   recentTokens{maxBytes: forRecent, tokens: make(map[string]*list.Element), order: list.New()},
	}
	var err error
	c.main, err = ristretto.NewCache(&ristretto.Config[uint64, *token]{
		NumCounters:        min(max(1000, 10*maxBytes/typicalTokenBytes), maxCounters),
		MaxCost:            maxBytes - forRecent,
		BufferItems:        64,
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
	return c, nil
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
	if t != nil && t.key == string(key) {
		return t
	}
	return c.recent.get(key)
}

// put stores a token and returns when look-ups can see it. One that has been
// purged since its minting began is not stored.
func (c *tokenCache) put(t *token, now time.Time) {
	remaining := time.Unix(t.exp, 0).Sub(now)
	if remaining <= 0 {
		return // ristretto takes a ttl of 0 for "forever"
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed || c.purges.cover(t) {
		return
	}
	hash := maphash.String(c.seed, t.key)
	if c.main.SetWithTTL(hash, t, t.cost(), remaining) {
		c.count.Add(1) // until it leaves, if only because it was turned away
	}
	// Set works in the background. Without waiting, the requests right after
	// this one would miss, and a second Set of a new key would be lost.
	c.main.Wait()
	if stored, _ := c.main.Get(hash); stored == t {
		c.recent.remove(t.key)
		return
	}
	c.rejected.Add(1)
	if t.cost() <= c.recent.maxBytes/recentShare { // one must not push out all the others
		c.recent.put(t, now)
	}
}

// purge forgets the tokens of one document, or all of them if documentID is
// empty, and returns how many there were.
func (c *tokenCache) purge(documentID string, now time.Time) int {
	// Whoever stores a token looks at the purges under mu as well: it has been
	// stored by now and is found below, or will not be.
	c.mu.Lock()
	c.purges.add(documentID, now)
	c.mu.Unlock()

	purged := c.recent.purge(&c.purges)
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return purged
	}
	var keys []string
	c.main.IterValues(func(t *token) (stop bool) {
		if c.purges.cover(t) {
			keys = append(keys, t.key)
		}
		return false
	})
	for _, key := range keys {
		c.main.Del(maphash.String(c.seed, key))
	}
	c.main.Wait()
	return purged + len(keys)
}

// size returns how many tokens there are, and the memory that they take.
func (c *tokenCache) size() (tokens, bytes int64) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if !c.closed {
		tokens, bytes = c.count.Load(), c.main.MaxCost()-c.main.RemainingCost()
	}
	c.recent.mu.Lock()
	defer c.recent.mu.Unlock()
	return tokens + int64(len(c.recent.tokens)), bytes + c.recent.bytes
}

// close ends the cache's goroutine. Later calls find nothing and store nothing.
func (c *tokenCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed = true
		c.main.Close()
	}
}

// cost is the memory that the cache accounts for the token.
func (t *token) cost() int64 { return int64(len(t.key) + len(t.jwt) + tokenOverhead) }

// recentTokens keeps the latest tokens within a bound of bytes.
type recentTokens struct {
	maxBytes int64
	count    atomic.Int64 // lets look-ups pass without the lock while there are none

	mu     sync.Mutex
	tokens map[string]*list.Element
	order  *list.List // of *token, oldest first
	bytes  int64
}

func (r *recentTokens) get(key []byte) *token {
	if r.count.Load() == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.tokens[string(key)]; ok {
		return e.Value.(*token)
	}
	return nil
}

func (r *recentTokens) put(t *token, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removeLocked(r.tokens[t.key])
	r.tokens[t.key] = r.order.PushBack(t)
	r.bytes += t.cost()
	for e := r.order.Front(); e != nil && (r.bytes > r.maxBytes || e.Value.(*token).exp <= now.Unix()); e = r.order.Front() {
		r.removeLocked(e)
	}
	r.count.Store(int64(len(r.tokens)))
}

func (r *recentTokens) purge(purges *purgeLog) (purged int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.tokens {
		if purges.cover(e.Value.(*token)) {
			r.removeLocked(e)
			purged++
		}
	}
	r.count.Store(int64(len(r.tokens)))
	return purged
}

func (r *recentTokens) remove(key string) {
	if r.count.Load() == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removeLocked(r.tokens[key])
	r.count.Store(int64(len(r.tokens)))
}

func (r *recentTokens) removeLocked(e *list.Element) {
	if e == nil {
		return
	}
	t := r.order.Remove(e).(*token)
	delete(r.tokens, t.key)
	r.bytes -= t.cost()
}
