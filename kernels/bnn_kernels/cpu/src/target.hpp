// BNN_TARGET("...") compiles what follows, up to BNN_TARGET_END, for instructions that only some processors have.
//
// Include every header of the library that is shared with other files before it: an inline function of theirs that was compiled
// behind it might be the one that the linker keeps for all.
#pragma once

#define BNN_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define BNN_TARGET(features) BNN_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define BNN_TARGET_END BNN_PRAGMA(clang attribute pop)
#else
#define BNN_TARGET(features) BNN_PRAGMA(GCC push_options) BNN_PRAGMA(GCC target(features))
#define BNN_TARGET_END BNN_PRAGMA(GCC pop_options)
#endif
