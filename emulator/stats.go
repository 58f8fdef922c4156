package emulator

import (
	"maps"
	"net/http"
)

// maxDocuments bounds Stats.Documents: ids come from whoever asks.
const maxDocuments = 10_000

// Stats are the counts since the start or the last Reset. Requests turned away
// because they are not local are not in them.
type Stats struct {
	// Requests to /viewer/sessions that arrived, answered or not.
	Requests int64 `json:"requests"`
	// Answers 201 to them, spoiled ones included.
	Mints int64 `json:"mints"`
	// Mints by document id, for the first 10,000 different ids.
	Documents map[string]int64 `json:"documents"`
	// Answers other than 201 to them, by status.
	Refused map[int]int64 `json:"refused"`
	// Tokens accepted at /i/d/{document_id}/auth.
	Auths int64 `json:"auths"`
	// Tokens refused there.
	AuthsRefused int64 `json:"auths_refused"`
	// Requests to /viewer/sessions under way, now and at most.
	InFlight    int64 `json:"in_flight"`
	MaxInFlight int64 `json:"max_in_flight"`
}

// Stats returns a copy of the counts.
func (e *Emulator) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.stats
	s.Documents = maps.Clone(s.Documents)
	s.Refused = maps.Clone(s.Refused)
	return s
}

// Reset sets the counts to zero, except for the requests under way. The fault,
// and the tokens given out, stay.
func (e *Emulator) Reset() {
	e.update(func(s *Stats) {
		*s = Stats{
			Documents:   map[string]int64{},
			Refused:     map[int]int64{},
			InFlight:    s.InFlight,
			MaxInFlight: s.InFlight,
		}
	})
}

func (e *Emulator) update(change func(*Stats)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(&e.stats)
}

func (s *Stats) countAnswer(status int, documents []string) {
	if status != http.StatusCreated {
		s.Refused[status]++
		return
	}
	s.Mints++
	for _, id := range documents {
		if _, known := s.Documents[id]; known || len(s.Documents) < maxDocuments {
			s.Documents[id]++
		}
	}
}
