package viewersession

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

// purgeMemory is how long a purge must be remembered: no mint that was under
// way at the purge lasts longer.
const purgeMemory = 3 * mint.MaxTimeout

// purgeLog remembers purges for as long as a mint can be under way, since what
// such a mint brings has been purged as well.
type purgeLog struct {
	latest atomic.Uint32

	mu        sync.RWMutex
	all       epoch            // the latest purge of everything
	documents map[string]epoch // the latest purge of a document; of the present period
	before    map[string]epoch // of the period before
	until     time.Duration    // when the present period ends
}

func (l *purgeLog) now() epoch { return epoch(l.latest.Load()) }

// add begins a new epoch. An empty document is all of them. now is by the
// monotonic clock, as timeouts are.
func (l *purgeLog) add(documentID string, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	began := l.now() + 1
	if documentID == "" {
		l.all = began
	} else {
		if l.documents == nil || now > l.until {
			l.documents, l.before, l.until = make(map[string]epoch), l.documents, now+purgeMemory
		}
		l.documents[strings.ToLower(documentID)] = began
	}
	l.latest.Store(uint32(began))
}

// purged reports whether the token has been purged since its minting began.
func (l *purgeLog) purged(t *token) bool {
	if t.epoch == l.now() {
		return false
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	document := strings.ToLower(claims.DocumentOf(nameOf(t.key()))) // the API may take ids as the same that differ in case
	return t.epoch < max(l.all, l.documents[document], l.before[document])
}
