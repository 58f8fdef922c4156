package viewersession

import (
	"fmt"
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dgraph-io/ristretto/v2"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

func newTestCache(t *testing.T, size int64) *tokenCache {
	t.Helper()
	c, err := newTokenCache(size, new(atomic.Uint64), clock.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}

func cachedToken(key string) *token {
	now := time.Now()
	return newTestToken(key, strings.Repeat("t", 900), now.Add(time.Hour).Unix(), now.Add(time.Hour).Unix(), now)
}

func TestCacheIsVisibleAtOnce(t *testing.T) {
	c := newTestCache(t, defaultCacheSize)
	for i := range 1000 {
		key := fmt.Sprint("key", i)
		first, second := cachedToken(key), cachedToken(key)
		c.put(first, clock.Now())
		if c.get([]byte(key)) != first {
			t.Fatalf("token %d is not there right after it was stored", i)
		}
		c.put(second, clock.Now())
		if c.get([]byte(key)) != second {
			t.Fatalf("token %d was not replaced", i)
		}
	}
}

func TestCacheComparesTheWholeKey(t *testing.T) {
	c := newTestCache(t, defaultCacheSize)
	// As if the two keys had the same hash, which is all that ristretto knows.
	other := cachedToken("somebody else")
	c.main.Set(maphash.String(c.seed, "me"), other, other.cost())
	c.main.Wait()
	if got, _ := c.main.Get(maphash.String(c.seed, "me")); got != other {
		t.Fatal("the collision did not come about")
	}
	if c.get([]byte("me")) != nil {
		t.Fatal("somebody else's token")
	}
	mine := cachedToken("me")
	c.put(mine, clock.Now())
	if c.get([]byte("me")) != mine {
		t.Error("after a collision, my own token is not found")
	}
}

// A full cache with hot residents turns new keys away while Set returns true.
func TestRejectedTokensAreKeptForAWhile(t *testing.T) {
	c := newTestCache(t, minCacheSize)
	resident := cachedToken("resident")
	c.put(resident, clock.Now())
	c.main.UpdateMaxCost(1) // from now on ristretto rejects every new key
	for i := range 1000 {
		key := fmt.Append(nil, "new", i)
		tok := cachedToken(string(key))
		c.put(tok, clock.Now())
		if stored, _ := c.main.Get(maphash.Bytes(c.seed, key)); stored != nil {
			t.Fatal("it was not rejected, so nothing is tested")
		}
		if c.get(key) != tok {
			t.Fatalf("token %d was lost at once", i)
		}
	}
	if c.overflow.bytes > c.overflow.maxBytes || c.overflow.bytes < c.overflow.maxBytes/2 {
		t.Errorf("%d bytes of rejected tokens in a room of %d", c.overflow.bytes, c.overflow.maxBytes)
	}
	if c.get([]byte("new999")) == nil || c.get([]byte("new0")) != nil {
		t.Error("it is not the oldest that gave way")
	}
	// Once ristretto takes it, it stands in one place only.
	c.main.UpdateMaxCost(minCacheSize)
	c.put(cachedToken("new999"), clock.Now())
	if c.overflow.get([]byte("new999")) != nil {
		t.Error("the token stands in both places")
	}
}

func TestOneLongKeyDoesNotPushOutAllRejectedTokens(t *testing.T) {
	c := newTestCache(t, minCacheSize)
	c.main.UpdateMaxCost(1)
	kept := cachedToken("kept")
	c.put(kept, clock.Now())
	c.put(cachedToken(strings.Repeat("long", minCacheSize/overflowShare/4)), clock.Now())
	if c.get([]byte("kept")) != kept {
		t.Error("it did")
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newTestCache(t, minCacheSize)
	for i := range 20_000 {
		c.put(cachedToken(fmt.Sprint("key", i)), clock.Now())
	}
	var bytes int64
	c.main.IterValues(func(tok *token) bool {
		bytes += tok.cost()
		return false
	})
	if total := bytes + c.overflow.bytes; total > minCacheSize {
		t.Errorf("%d bytes, more than %d", total, minCacheSize)
	}
	if bytes < minCacheSize/2 {
		t.Errorf("only %d bytes are used", bytes)
	}
	if got, want := int64(len(c.overflow.tokens)), c.overflow.count.Load(); got != want || c.overflow.order.Len() != int(want) {
		t.Errorf("%d recent tokens, %d counted, %d in order", got, want, c.overflow.order.Len())
	}
}

func TestExpiredTokensAreNotStored(t *testing.T) {
	c := newTestCache(t, minCacheSize)
	now := time.Now()
	c.put(newTestToken("key", "jwt", now.Unix(), now.Unix(), now.Add(-time.Hour)), clock.At(time.Unix(now.Unix(), 0)))
	if c.get([]byte("key")) != nil {
		t.Error("an expired token was stored")
	}
}

// Tokens leave within a minute of their end, and only those that have ended.
func TestExpiredTokensAreSwept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCache(t, defaultCacheSize)
		now := time.Now()
		for i := range 100 {
			exp := now.Add(time.Duration(i) * time.Minute).Unix()
			c.put(newTestToken(fmt.Sprint("key", i), "jwt", exp, exp, now), clock.At(now))
		}
		for left := int64(98); left >= 0; left-- {
			time.Sleep(sweepInterval)
			synctest.Wait()
			if tokens, bytes := c.size(); tokens != left || (bytes == 0) != (left == 0) {
				t.Fatalf("%d tokens of %d bytes, want %d", tokens, bytes, left)
			}
		}
		c.close() // ends the goroutines, or the test fails
	})
}

// A token that takes the place of an expired one while that is swept out stays.
func TestSweepLeavesTheSuccessor(t *testing.T) {
	c := newTestCache(t, defaultCacheSize)
	old, successor := cachedToken("key"), cachedToken("key")
	c.put(old, clock.Now())

	c.storing.RLock() // somebody stores a token
	searching, dropped := make(chan struct{}), make(chan int)
	go func() {
		dropped <- c.drop(func(tok *token) bool { close(searching); return tok == old }, clock.Now())
	}()
	<-searching
	c.main.Set(maphash.String(c.seed, "key"), successor, successor.cost())
	c.main.Wait()
	c.storing.RUnlock()
	if n := <-dropped; n != 0 || c.get([]byte("key")) != successor {
		t.Errorf("%d were dropped, and %v is found", n, c.get([]byte("key")))
	}
	if n := c.drop(func(tok *token) bool { return tok == successor }, clock.Now()); n != 1 || c.get([]byte("key")) != nil {
		t.Errorf("%d were dropped, and %v is found", n, c.get([]byte("key")))
	}
}

// Those that ristretto turned away are swept as well.
func TestExpiredTokensThatWereTurnedAwayAreSwept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCache(t, defaultCacheSize)
		defer c.close()
		now := time.Now()
		for key, life := range map[string]time.Duration{"long": time.Hour, "short": time.Minute, "other": time.Minute} {
			c.overflow.put(newTestToken(key, "jwt", now.Add(life).Unix(), now.Add(life).Unix(), now))
		}
		time.Sleep(time.Minute + sweepInterval)
		synctest.Wait()
		if tokens, _ := c.size(); tokens != 1 || c.get([]byte("long")) == nil {
			t.Errorf("%d tokens are left", tokens)
		}
	})
}

// A reload does not wait for a search through a million tokens, and neither do
// the requests that come behind it.
func TestClosingEndsASweep(t *testing.T) {
	for step, want := range map[string]int{"search": 1, "delete": 100} {
		c := newTestCache(t, defaultCacheSize)
		for i := range 100 {
			c.put(cachedToken(fmt.Sprint("key", i)), clock.Now())
		}
		var closed sync.WaitGroup
		looked := 0
		dropped := c.drop(func(*token) bool {
			if looked++; looked == want {
				closed.Go(c.close)
				<-c.done
			}
			return true
		}, clock.Now())
		if looked != want || dropped != 0 {
			t.Errorf("closed during the %s: %d tokens were looked at, want %d, and %d dropped", step, looked, want, dropped)
		}
		closed.Wait()
	}
}

func TestSketchSize(t *testing.T) {
	for size, want := range map[int64]int64{
		minCacheSize:     1 << 13,
		defaultCacheSize: 1 << 19,
		1500 << 20:       1 << 23,
		13 << 30:         1 << 27,
		maxCacheSize:     1 << 27,
	} {
		if got := countersFor(size); got != want {
			t.Errorf("%d counters for %d bytes, want %d", got, size, want)
		}
	}
}

func TestCacheMayBeUsedWhileItCloses(t *testing.T) {
	for range 20 {
		c := newTestCache(t, minCacheSize)
		// Its policy hears of every look-up at once, and not of many together.
		c.main.Close()
		var err error
		if c.main, err = ristretto.NewCache(&ristretto.Config[uint64, *token]{NumCounters: 1000, MaxCost: minCacheSize, BufferItems: 1}); err != nil {
			t.Fatal(err)
		}
		c.put(cachedToken("key"), clock.Now())
		start := make(chan struct{})
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				<-start
				for j := range 200 {
					c.get([]byte("key"))
					c.put(cachedToken(fmt.Sprint(i, j)), clock.Now())
				}
			})
		}
		wg.Go(func() { <-start; c.close() })
		wg.Go(func() { <-start; c.close() })
		close(start)
		wg.Wait()
		if c.get([]byte("key")) != nil {
			t.Fatal("a closed cache still finds tokens")
		}
	}
}
