package viewersession

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// era counts purges: it is the time that purges know.
type era uint32

// purgeMemory is how long a purge must be remembered: no mint that was under
// way at the purge lasts longer.
const purgeMemory = 3 * maxTimeout

// purgeLog remembers purges for as long as a mint can be under way, since what
// such a mint brings has been purged as well.
type purgeLog struct {
	latest atomic.Uint32

	mu        sync.RWMutex
	all       era            // the latest purge of everything
	documents map[string]era // the latest purge of a document; of the present period
	before    map[string]era // of the period before
	until     time.Duration  // when the present period ends
}

func (l *purgeLog) now() era { return era(l.latest.Load()) }

// add begins a new era. An empty document is all of them. now is by the
// monotonic clock, as timeouts are.
func (l *purgeLog) add(documentID string, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	began := l.now() + 1
	if documentID == "" {
		l.all = began
	} else {
		if l.documents == nil || now > l.until {
			l.documents, l.before, l.until = make(map[string]era), l.documents, now+purgeMemory
		}
		l.documents[strings.ToLower(documentID)] = began
	}
	l.latest.Store(uint32(began))
}

// cover reports whether the token has been purged since its minting began.
func (l *purgeLog) cover(t *token) bool {
	if t.era == l.now() {
		return false
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	document := strings.ToLower(documentOf(t.key()[len(account{}):])) // the API may take ids as the same that differ in case
	return t.era < max(l.all, l.documents[document], l.before[document])
}
