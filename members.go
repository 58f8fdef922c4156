package viewersession

import (
	"net/http"
	"slices"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

// keyCheckRate bounds how often per second a refused key is compared with what
// its placeholder gives now, which may read a file.
const keyCheckRate = 10

// member is what a loaded config lends to its pool. It ends with the config.
type member struct {
	transport http.RoundTripper
	store     Store // nil for none
	logger    *zap.Logger
	key       atomic.Pointer[mint.Key]
}

func newMember(transport http.RoundTripper, store Store, logger *zap.Logger, apiKey string) *member {
	m := &member{transport: transport, store: store, logger: logger}
	m.key.Store(mint.NewKey(apiKey))
	return m
}

// members are the configs that use a pool, the oldest first. It is a mint.Source.
type members struct {
	resolveKey func() (string, error) // what the placeholder gives now
	keyChanged func()
	keyChecks  *rate.Limiter

	mu  sync.Mutex
	all []*member

	// active is the member whose transport, key, store and logger are used:
	// the oldest, so that a config that is refused in the end is never asked.
	// The last one stays when all have left, for requests still under way.
	active atomic.Pointer[member]
}

func (ms *members) add(m *member) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	ms.all = append(ms.all, m)
	ms.activate()
}

func (ms *members) remove(m *member) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	ms.all = slices.DeleteFunc(ms.all, func(other *member) bool { return other == m })
	ms.activate()
}

// activate makes the oldest member the one that is used. The lock is held.
func (ms *members) activate() {
	if len(ms.all) == 0 || ms.active.Load() == ms.all[0] {
		return
	}
	before := ms.active.Swap(ms.all[0])
	if before != nil && before.key.Load().ID != ms.key().ID {
		ms.keyChanged()
	}
}

func (ms *members) count() int {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	return len(ms.all)
}

// Access implements mint.Source.
func (ms *members) Access() (http.RoundTripper, *mint.Key) {
	m := ms.active.Load()
	return m.transport, m.key.Load()
}

// Refresh implements mint.Source: a rotated secret file needs no reload.
func (ms *members) Refresh(refused *mint.Key) bool {
	if ms.key().ID != refused.ID {
		return true
	}
	if !ms.keyChecks.Allow() {
		return false
	}
	apiKey, err := ms.resolveKey()
	if err != nil || apiKey == refused.Secret {
		return false
	}
	changed := mint.NewKey(apiKey)
	ms.mu.Lock()
	defer ms.mu.Unlock()
	ms.active.Load().key.Store(changed)
	for _, m := range ms.all {
		m.key.Store(changed)
	}
	ms.keyChanged()
	return true
}

func (ms *members) key() *mint.Key { return ms.active.Load().key.Load() }

func (ms *members) logger() *zap.Logger { return ms.active.Load().logger }

// store is the one of the config that is in use. All of a pool's are the same.
func (ms *members) store() Store { return ms.active.Load().store }
