package viewersession

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

// maxPreviousKeys is how many rotations of the API key are remembered.
const maxPreviousKeys = 3

// keyring holds the ids of the API keys whose tokens are looked up. The id of a
// token's key is in front of its cache key.
type keyring struct {
	// current is the key that minted last. A new key takes over when it has
	// minted, so that a wrong one takes no valid token away.
	current atomic.Pointer[mint.KeyID]

	// previous are the keys before it, the latest first. Their tokens are valid
	// for as long as they say: when the API is down right after a rotation,
	// nobody who has a document open should notice.
	previous atomic.Pointer[[]mint.KeyID]

	mu sync.Mutex
}

// promote makes the key the current one.
func (k *keyring) promote(id *mint.KeyID) {
	if *k.current.Load() == *id {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	before := *k.current.Load()
	if before == *id {
		return
	}
	// The list first, so that the tokens in use are found at any moment.
	previous := []mint.KeyID{before}
	if older := k.previous.Load(); older != nil {
		previous = append(previous, *older...)
	}
	previous = slices.DeleteFunc(previous, func(other mint.KeyID) bool { return other == *id })
	previous = previous[:min(len(previous), maxPreviousKeys)]
	k.previous.Store(&previous)
	k.current.Store(id)
}

// cacheKey returns the cache key of what has this name, with the current key.
func (k *keyring) cacheKey(name string) []byte { return withKeyID(k.current.Load(), name) }

func withKeyID(id *mint.KeyID, name string) []byte {
	return append(append(make([]byte, 0, len(id)+len(name)), id[:]...), name...)
}

// nameOf returns a cache key without the key's id in front: when the API key has
// changed, those who still come with the old one join those who already come
// with the new one.
func nameOf[T string | []byte](cacheKey T) T { return cacheKey[len(mint.KeyID{}):] }
