// SPDX-License-Identifier: MIT
#pragma once

#include <mnemo/text/blocks.hpp>

namespace mnemo {

/// Windows without the first batches, whose tokens were dealt with by an earlier run: they are cut, because later ones
/// take their context from them, but not handed out. `done` counts scored tokens; throws Error where it is not the end
/// of a batch. The windows must outlive it.
class RemainingWindows {
  public:
    RemainingWindows(ContextWindows& windows, index_t done) : windows_(&windows), done_(done) {}

    bool next(WindowBatch& batch) {
        while (windows_->next(batch)) {
            if (done_ == 0) return true;
            if (batch.scored() > done_)
                fail("RemainingWindows: expected the end of a batch, got ", done_, " of ", batch.scored(), " tokens");
            done_ -= batch.scored();
        }
        return false;
    }
    index_t tokens() const { return windows_->tokens(); }

  private:
    ContextWindows* windows_;
    index_t done_;
};

} // namespace mnemo
