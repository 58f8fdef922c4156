package viewersession

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Store is a tier of tokens that several gateways share, so that a token which
// one of them has minted serves all. Stores are modules in the namespace
// http.handlers.viewer_session.stores, with their name under the key "store".
//
// A store is never needed: when a method returns an error, the gateway goes on
// by itself. So a method must return soon, well within the time that a mint
// takes, when the store is down or hangs.
//
// Names are arbitrary bytes, up to some kilobytes. Names and entries are
// secrets: whoever can read an entry can use the token in it, and a name tells
// who looks at what. What a store keeps must be unreadable for others, and an
// entry must not be accepted under another name than its own.
type Store interface {
	// Acquire returns the entry under the name, unless it is the one whose
	// version is stale. If there is none, the caller gets the lock on the
	// name for lockFor, unless somebody else has it. Both is one step. With
	// an error it returns the lock that the caller may have got all the same.
	Acquire(ctx context.Context, name, stale string, lockFor time.Duration) (Acquired, error)

	// Put stores an entry for ttl in place of the one that may be there,
	// and releases the lock if it is not empty and still the caller's.
	Put(ctx context.Context, name, lock string, entry []byte, ttl time.Duration) error

	// Release gives back a lock if it is still the caller's.
	Release(ctx context.Context, name, lock string) error
}

// Acquired is what Store.Acquire found: an entry, a lock, or neither if
// somebody else has the lock.
type Acquired struct {
	Entry   []byte
	Version string // of the entry; entries of one name never have the same
	Lock    string
}

// ErrStoreUnavailable is what a Store returns, perhaps wrapped, when it did not
// even try because it knows that the store is down.
var ErrStoreUnavailable = errors.New("the store is not asked for a while, because it fails")

const (
	storeNamespace = "http.handlers.viewer_session.stores"

	// lockMargin is how much longer a lock lives than a mint can take.
	lockMargin = 2 * time.Second

	// Between two looks for what another gateway mints.
	firstLook, lastLook = 20 * time.Millisecond, 250 * time.Millisecond

	// maxUnwanted is how many entries are looked at one after the other. Two
	// are usual while an encryption key is rotated.
	maxUnwanted = 3

	// finishTime bounds what is done in the store when a mint is over.
	finishTime = 500 * time.Millisecond
)

// storeOperation is one of the metric's series: an operation on the store, and
// how it ended.
type storeOperation struct{ operation, outcome string }

var storeOperations = [...]storeOperation{
	{"acquire", "hit"},
	{"acquire", "locked"},
	{"acquire", "held"},
	{"acquire", "error"},
	{"acquire", "unavailable"},
	{"put", "ok"},
	{"put", "error"},
	{"put", "unavailable"},
	{"release", "ok"},
	{"release", "error"},
	{"release", "unavailable"},
}

// storedToken is a token as it stands in the store.
type storedToken struct {
	JWT      string `json:"jwt"`
	Minted   int64  `json:"minted"`             // Unix nanoseconds
	AskedExp int64  `json:"asked_exp"`          // Unix seconds
	Replaced bool   `json:"replaced,omitempty"` // it was minted because its predecessor was rejected
}

// lease is one flight's use of the store. The zero lease is for no store, or
// one that is known to be down: nothing is written to it then.
type lease struct {
	pool  *pool
	store Store
	name  string
	lock  string // empty: not ours
}

// consult looks for the token in the shared store. It returns a token that
// another gateway has minted, or the lease with which this one is to mint. The
// failure is for a renewal that another gateway is at. It takes no more than
// half of the pool's timeout, which is not taken off the mint's own.
func (p *pool) consult(key []byte, a *ask, e errand, cached *token, began era) (*token, *lease, *failure) {
	store := p.active.Load().store
	if store == nil {
		return nil, new(lease), nil
	}
	l := &lease{pool: p, store: store, name: p.storeName(key)}
	ctx, cancel := context.WithTimeout(context.Background(), p.settings.timeout/2)
	defer cancel()
	stale, pause := "", firstLook
	for unwanted := 0; unwanted < maxUnwanted; {
		got, err := store.Acquire(ctx, l.name, stale, p.settings.timeout+lockMargin)
		now := time.Now()
		if err != nil {
			p.storeFailed("acquire", err, now)
			if errors.Is(err, ErrStoreUnavailable) {
				return nil, new(lease), nil
			}
			l.lock = got.Lock // perhaps
			return nil, l, nil
		}
		switch {
		case got.Entry != nil:
			p.storeWorked("acquire", "hit", now)
			unwanted++
			t, err := p.readStoredToken(got.Entry, string(key), a, now)
			if err == nil {
				t.era = began
				if e.wants(t, a, cached, now) {
					return t, l, nil
				}
				if cached.freshness(now, 0) == expired && !e.avoids(t) {
					p.cache.put(t, now) // better than nothing, if no other can be minted
				}
			}
			stale = got.Version
		case got.Lock != "":
			p.storeWorked("acquire", "locked", now)
			l.lock = got.Lock
			return nil, l, nil
		default:
			p.storeWorked("acquire", "held", now)
			if e.renewal {
				return nil, l, &failure{reason: reasonUnavailable, gaveWay: true, err: errors.New("another gateway renews the token")}
			}
			if !sleep(ctx, pause/2+rand.N(pause)) {
				return nil, l, nil // whoever has the lock may be gone
			}
			pause = min(2*pause, lastLook)
		}
	}
	return nil, l, nil
}

// wants reports whether a token from the store does for this errand.
func (e errand) wants(t *token, a *ask, cached *token, now time.Time) bool {
	if e.avoids(t) {
		return false
	}
	if e.renewal && cached != nil && t.exp <= cached.exp {
		return false
	}
	if e.rejected != nil && t.minted().Before(e.rejected.minted()) {
		return false // one that has been rejected before, maybe
	}
	return t.freshness(now, a.minRemaining) >= due
}

// avoids reports whether it is the token that a browser says was rejected.
func (e errand) avoids(t *token) bool {
	return e.rejected != nil && e.rejected.jwt() == t.jwt() || e.rejectedText != "" && t.is(e.rejectedText)
}

// storeVersion stands in the names of entries. It changes when gateways must
// not read what older ones have written: those of version 1 did not check what
// a token permits.
const storeVersion = "2"

// storeName is everything that makes two tokens different.
func (p *pool) storeName(key []byte) string {
	return string(append(appendField(appendField(nil, storeVersion), p.settings.endpoint), key...))
}

func (p *pool) readStoredToken(entry []byte, key string, a *ask, now time.Time) (*token, error) {
	var s storedToken
	if err := json.Unmarshal(entry, &s); err != nil {
		return nil, errors.New("the entry is not one of ours")
	}
	facts, err := readToken(s.JWT, a, s.AskedExp, now)
	if err != nil {
		return nil, err
	}
	if facts.ownOnly {
		return nil, errors.New("the token names the user in another case")
	}
	minted := time.Unix(0, s.Minted)
	t := newToken(key, s.JWT, facts.exp, s.AskedExp, minted)
	if s.Replaced {
		t.replaceAfter.Store(int64(p.elapsed(minted) + replacementRest))
	}
	return t, nil
}

// finish shares the token that was minted under the lease, if there is one,
// and gives the lock back in any case. Nobody waits for it: it runs beside the
// requests that have the token already, and ends after finishTime at the latest.
func (l *lease) finish(t *token) {
	if l.store == nil || t == nil && l.lock == "" {
		return
	}
	finished := *l
	go func() {
		defer func() {
			// Nobody else could recover a panic here.
			if r := recover(); r != nil {
				_ = finished.pool.panicked(r)
			}
		}()
		ctx, cancel := context.WithTimeout(context.Background(), finishTime)
		defer cancel()
		if t == nil || !finished.put(ctx, t, time.Now()) {
			finished.release(ctx)
		}
	}()
}

// yield gives the lock back before the mint. Its token is shared all the same.
func (l *lease) yield() {
	unlocked := *l
	l.lock = ""
	unlocked.finish(nil)
}

// put reports whether the lock has been given back as well.
func (l *lease) put(ctx context.Context, t *token, now time.Time) bool {
	ttl := time.Unix(t.exp, 0).Sub(now)
	if ttl <= 0 || l.pool.cache.purges.cover(t) {
		return false
	}
	entry, err := json.Marshal(storedToken{ //nolint:gosec // the store seals it
		JWT:      t.jwt(),
		Minted:   t.minted().UnixNano(),
		AskedExp: time.Unix(t.exp, 0).Add(t.asked - t.life).Unix(),
		Replaced: t.replaceAfter.Load() != 0,
	})
	if err != nil {
		return false // strings and numbers
	}
	name, lock := l.pool.storeName([]byte(t.key())), l.lock
	if name != l.name {
		lock = "" // minted with a key that has changed: the lock stands under the old name
	}
	if err := l.store.Put(ctx, name, lock, entry, ttl); err != nil {
		l.pool.storeFailed("put", err, time.Now())
		return false
	}
	l.pool.storeWorked("put", "ok", time.Now())
	return lock == l.lock
}

// release gives the lock back: others need not wait for a mint that has failed.
func (l *lease) release(ctx context.Context) {
	if l.lock == "" {
		return
	}
	if err := l.store.Release(ctx, l.name, l.lock); err != nil {
		l.pool.storeFailed("release", err, time.Now())
		return
	}
	l.pool.storeWorked("release", "ok", time.Now())
}

// storeTrouble is what is wrong with the store, and since when.
type storeTrouble struct {
	mu     sync.Mutex
	last   string // the latest error; empty if there was none
	at     time.Time
	since  time.Time // of the first error that no success has followed; zero while all is well
	logged bool
}

func (p *pool) storeFailed(operation string, err error, now time.Time) {
	if errors.Is(err, ErrStoreUnavailable) {
		p.counters.countStore(operation, "unavailable")
		return
	}
	p.counters.countStore(operation, "error")
	text := cleanDetail(fmt.Sprintf("%s: %v", operation, err), p.credential().apiKey)
	suppressed, ok := p.storeLog.open("", now)
	if ok {
		p.logger().Warn("the shared store fails; this gateway mints for itself meanwhile",
			zap.String("error", text), zap.Int("suppressed", suppressed))
	}
	t := &p.storeTrouble
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last, t.at, t.logged = text, now, t.logged || ok
	if t.since.IsZero() {
		t.since = now
	}
}

func (p *pool) storeWorked(operation, outcome string, now time.Time) {
	p.counters.countStore(operation, outcome)
	t := &p.storeTrouble
	t.mu.Lock()
	since, logged := t.since, t.logged
	t.since, t.logged = time.Time{}, false
	t.mu.Unlock()
	if logged {
		p.logger().Info("the shared store works again", zap.Duration("after", now.Sub(since)))
	}
}

// sleep reports whether the time has passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
