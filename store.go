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

	"github.com/viewersession/caddy-viewer-session/internal/clock"
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
	// If lockFor is 0, it only looks.
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
	Version string        // of the entry; entries of one name never have the same
	TTL     time.Duration // how long the store keeps the entry; 0 if it does not say
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
	{"acquire", "miss"},
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

// storedToken is a token as it stands in the store. Its moments are by the
// API's clock, as far as it is known.
type storedToken struct {
	JWT      string `json:"jwt"`
	Minted   int64  `json:"minted"`             // Unix nanoseconds
	AskedExp int64  `json:"asked_exp"`          // Unix seconds
	Replaced bool   `json:"replaced,omitempty"` // it was minted because its predecessor was rejected
}

// lease is one flight's use of the store. The zero lease is for no store, or
// one that is known to be down: nothing is written to it then.
type lease struct {
	pool *pool // nil: there is no store to use
	name string
	lock string // empty: not ours
}

// maxPeeks is how many flights look into the store at once without a turn.
const maxPeeks = 16

// look is one flight's look for its token in the shared store.
type look struct {
	pool    *pool
	key     []byte
	ask     *ask
	errand  errand
	cached  *token
	began   era
	timeout time.Duration // how long it may take
}

func (p *pool) newLook(key []byte, a *ask, e errand, cached *token, began era) *look {
	return &look{pool: p, key: key, ask: a, errand: e, cached: cached, began: began, timeout: p.settings.timeout / 2}
}

// peek looks once, without asking for the lock, unless many do that already. It
// is for those who may not mint now. It returns and publishes a token that does.
func (l *look) peek() *token {
	store := l.pool.store()
	if store == nil {
		return nil
	}
	select {
	case l.pool.peeks <- struct{}{}:
		defer func() { <-l.pool.peeks }()
	default:
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), l.timeout)
	defer cancel()
	got, err := store.Acquire(ctx, l.pool.storeName(l.key), "", 0)
	now := l.pool.now()
	if err != nil {
		l.pool.storeFailed("acquire", err, now.Wall())
		return nil
	}
	if got.Entry == nil {
		l.pool.storeWorked("acquire", "miss", now.Wall())
		return nil
	}
	l.pool.storeWorked("acquire", "hit", now.Wall())
	return l.judge(got, now)
}

// acquire returns a token that another gateway has minted, or the lease with
// which this one is to mint. The failure is for a renewal that another gateway is
// at. It takes no more than half of the pool's timeout, which is not taken off
// the mint's own.
func (l *look) acquire() (*token, *lease, *failure) {
	if l.pool.store() == nil {
		return nil, new(lease), nil
	}
	under := &lease{pool: l.pool, name: l.pool.storeName(l.key)}
	ctx, cancel := context.WithTimeout(context.Background(), l.timeout)
	defer cancel()
	stale, pause := "", firstLook
	for unwanted := 0; unwanted < maxUnwanted; {
		got, err := l.pool.store().Acquire(ctx, under.name, stale, l.pool.settings.timeout+lockMargin)
		now := l.pool.now()
		if err != nil {
			l.pool.storeFailed("acquire", err, now.Wall())
			if errors.Is(err, ErrStoreUnavailable) {
				return nil, new(lease), nil
			}
			under.lock = got.Lock // perhaps
			return nil, under, nil
		}
		switch {
		case got.Entry != nil:
			l.pool.storeWorked("acquire", "hit", now.Wall())
			unwanted++
			if t := l.judge(got, now); t != nil {
				return t, under, nil
			}
			stale = got.Version
		case got.Lock != "":
			l.pool.storeWorked("acquire", "locked", now.Wall())
			under.lock = got.Lock
			return nil, under, nil
		default:
			l.pool.storeWorked("acquire", "held", now.Wall())
			if l.errand.renewal {
				return nil, under, &failure{reason: reasonUnavailable, gaveWay: true, err: errors.New("another gateway renews the token")}
			}
			if !sleep(ctx, pause/2+rand.N(pause)) {
				return nil, under, nil // whoever has the lock may be gone
			}
			pause = min(2*pause, lastLook)
		}
	}
	return nil, under, nil
}

// judge returns and publishes the token in an entry, if it does for the errand.
func (l *look) judge(got Acquired, now clock.Time) *token {
	t, err := l.pool.readStoredToken(got, string(l.key), l.ask, now)
	if err != nil {
		return nil
	}
	t.era = l.began
	wanted := l.errand.wants(t, l.ask, l.cached, now)
	if wanted || l.cached.freshness(now, 0) == expired && !l.errand.avoids(t) {
		l.pool.cache.put(t, now) // one that runs short is better than none
	}
	if !wanted {
		return nil
	}
	return t
}

// wants reports whether a token from the store does for this errand.
func (e errand) wants(t *token, a *ask, cached *token, now clock.Time) bool {
	if e.avoids(t) {
		return false
	}
	if e.renewal && cached != nil && t.exp <= cached.exp {
		return false
	}
	if e.rejected != nil && t.minted.Mono() < e.rejected.minted.Mono() {
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

// store is the one of the config that is in use: a look or a lease may outlive
// the config that it began with. All of a pool's are the same store.
func (p *pool) store() Store { return p.active.Load().store }

// storeName is everything that makes two tokens different.
func (p *pool) storeName(key []byte) string {
	return string(append(appendField(appendField(nil, storeVersion), p.settings.endpoint), key...))
}

func (p *pool) readStoredToken(got Acquired, key string, a *ask, now clock.Time) (*token, error) {
	var s storedToken
	if err := json.Unmarshal(got.Entry, &s); err != nil {
		return nil, errors.New("the entry is not one of ours")
	}
	api, _ := p.apiClock.now(now)
	facts, err := readToken(s.JWT, a, s.AskedExp, api)
	if err != nil {
		return nil, err
	}
	if facts.ownOnly {
		return nil, errors.New("the token names the user or the document in another case")
	}
	exp, minted := time.Unix(facts.exp, 0), time.Unix(0, s.Minted)
	age := max(0, api.Sub(minted))
	left := exp.Sub(api)
	if got.TTL > 0 {
		left = min(left, got.TTL) // the store's own clock is the gateways' common one
	}
	t := newToken(key, s.JWT, facts.exp, lifetime{minted: now.Add(-age), life: age + left, asked: time.Unix(s.AskedExp, 0).Sub(minted)})
	if s.Replaced && age < replacementRest {
		t.replaceAfter.Store(int64(p.elapsed(now) + replacementRest - age))
	}
	return t, nil
}

// finish shares the token that was minted under the lease, if there is one,
// and gives the lock back in any case. Nobody waits for it: it runs beside the
// requests that have the token already, and ends after finishTime at the latest.
func (l *lease) finish(t *token) {
	if l.pool == nil || t == nil && l.lock == "" {
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
		if t == nil || !finished.put(ctx, t, finished.pool.now()) {
			finished.release(ctx)
		}
	}()
}

// put reports whether the lock has been given back as well.
func (l *lease) put(ctx context.Context, t *token, now clock.Time) bool {
	age := now.Since(t.minted)
	ttl := t.life - age
	if ttl <= 0 || l.pool.cache.purges.cover(t) {
		return false
	}
	api, _ := l.pool.apiClock.now(now)
	minted := api.Add(-age)
	entry, err := json.Marshal(storedToken{ //nolint:gosec // the store seals it
		JWT:      t.jwt(),
		Minted:   minted.UnixNano(),
		AskedExp: minted.Add(t.asked).Unix(),
		Replaced: t.replaceAfter.Load() != 0,
	})
	if err != nil {
		return false // strings and numbers
	}
	name, lock := l.pool.storeName([]byte(t.key())), l.lock
	if name != l.name {
		lock = "" // minted with a key that has changed: the lock stands under the old name
	}
	if err := l.pool.store().Put(ctx, name, lock, entry, ttl); err != nil {
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
	if err := l.pool.store().Release(ctx, l.name, l.lock); err != nil {
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
