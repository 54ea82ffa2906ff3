// SPDX-License-Identifier: MIT
#pragma once

// The core: concepts, Memory, Session, recalls, views, errors. Needs the standard library; asks Linux for huge pages.
#include <mnemo/core/error.hpp>
#include <mnemo/core/executor.hpp>
#include <mnemo/core/session.hpp>
#include <mnemo/version.hpp>
